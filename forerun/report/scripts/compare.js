// Two reports side by side: before and after a change.

/** A change in words; for `less`, fewer is better. */
function delta(before, after, less) {
  if (!before || !after) return "";
  const ratio = after / before - 1;
  const text = `${ratio >= 0 ? "+" : "−"}${percent(Math.abs(ratio))}`;
  if (Math.abs(ratio) < 0.01) return h("span", { class: "muted" }, text);
  return h("span", { class: ratio < 0 === less ? "better" : "worse" }, text);
}

function comparisonFigures(a, b) {
  const step = (report, rows) => {
    const at = report.cost ? report.cost.rows.indexOf(rows) : -1;
    return at < 0 ? null : report.cost.seconds[at];
  };
  const held = (report, name) => sum(report.memory.filter((each) => each.name.startsWith(name)).map((each) => each.bytes)) || null;
  const passes = (report) => sum(report.passes.map((each) => each.seconds));
  const kernels = (report) => (report.step ? report.step.kernels.length : null);
  const played = (report, name) => (report.replay ? report.replay[name] : null);
  const rows = [
    ["tokens per second", played(a, "tokens_per_second"), played(b, "tokens_per_second"), digits, false],
    ["accepted length", played(a, "accepted_length"), played(b, "accepted_length"), digits, false],
    ...[1, 8, 32].map((size) => [`step of ${size === 1 ? "1 row" : `${size} rows`}`, step(a, size), step(b, size), seconds, true]),
    ["import and passes", passes(a), passes(b), seconds, true],
    ["compiling", a.about.compile_seconds, b.about.compile_seconds, seconds, true],
    ["kernels of a step", kernels(a), kernels(b), whole, true],
    ["weights", held(a, "weights"), held(b, "weights"), bytes, true],
    ["states", held(a, "states"), held(b, "states"), bytes, true],
    ["arena", held(a, "arena"), held(b, "arena"), bytes, true],
  ];
  const shown = (value, format) => (value === null ? "—" : format(value));
  return rows.filter(([, x, y]) => x !== null || y !== null)
    .map(([name, x, y, format, less]) => [name, shown(x, format), shown(y, format), delta(x, y, less)]);
}

function comparison(data) {
  const [a, b] = data.reports;
  const [one, two] = data.names;
  const same = a.replay && b.replay && a.replay.prompt === b.replay.prompt
    ? (String(a.replay.token_ids) === String(b.replay.token_ids) ? "Both generated the same tokens." : "The tokens that they generated differ.")
    : "";
  const setting = (report) => `${report.about.model}, ${report.about.target}, ${report.about.dtype}, ${report.about.strategy}`;
  const columns = (name) => [name, one, two, "change"];
  const parts = [
    h("div", { class: "hero" }, h("h1", {}, `${one} → ${two}`), h("p", {}, `${setting(a)} → ${setting(b)}. ${same}`)),
    section("figures", "Figures", "Green is better, red is worse; what differs by less than 1% is neither.",
      h("div", { class: "card padded" }, table(columns("figure"), comparisonFigures(a, b)))),
    kernelComparison(a, b, columns("kernel")),
    passComparison(a, b, columns("pass")),
    h("div", { class: "columns", style: "margin-top:56px" },
      a.cost && b.cost ? h("div", { class: "card padded half" }, costComparison(a, b, [one, two])) : null,
      a.replay && b.replay ? h("div", { class: "card padded half" }, lengthComparison(a, b, [one, two])) : null),
  ];
  return [parts.filter((each) => each), [["figures", "Figures"], ["kernels", "Kernels"], ["passes", "Passes"]]];
}

function kernelComparison(a, b, columns) {
  const times = (report) => new Map(!report.step ? [] : report.step.rows.flatMap((rows, place) =>
    d3.rollups(report.step.kernels.filter((each) => each.seconds.length), (own) => sum(own.map((each) => each.seconds[place])),
      (each) => each.label).map(([label, time]) => [`${label}, ${rows === 1 ? "1 row" : `${rows} rows`}`, time])));
  const [before, after] = [times(a), times(b)];
  const names = [...new Set([...before.keys(), ...after.keys()])];
  if (!names.length) return null;
  const weight = (name) => Math.max(before.get(name) || 0, after.get(name) || 0);
  const rows = names.toSorted((x, y) => weight(y) - weight(x)).map((name) => [name,
    before.has(name) ? seconds(before.get(name)) : "—", after.has(name) ? seconds(after.get(name)) : "—",
    delta(before.get(name), after.get(name), true)]);
  return section("kernels", "Kernels", "The time of all kernels of one name, in one step.",
    h("div", { class: "card padded scroll", tabindex: 0, role: "region", "aria-label": "Kernels, table" }, table(columns, rows)));
}

function passComparison(a, b, columns) {
  const counted = (report) => {
    const seen = new Map();
    return new Map(report.passes.map((each) => {
      const number = (seen.get(each.name) || 0) + 1;
      seen.set(each.name, number);
      return [number > 1 ? `${each.name} (${number})` : each.name, each];
    }));
  };
  const [before, after] = [counted(a), counted(b)];
  const shown = (each) => (each ? `${whole(each.after)} operations, ${seconds(each.seconds)}` : "—");
  const rows = [...new Set([...before.keys(), ...after.keys()])].map((name) => [name, shown(before.get(name)), shown(after.get(name)),
    delta(before.get(name)?.seconds, after.get(name)?.seconds, true)]);
  return section("passes", "Passes", "The operations that every pass leaves, and its time.",
    h("div", { class: "card padded scroll", tabindex: 0, role: "region", "aria-label": "Passes, table" }, table(columns, rows)));
}

function costComparison(a, b, names) {
  const points = [a, b].flatMap((report, at) => report.cost.rows.map((rows, number) => ({ rows, ms: report.cost.seconds[number] * 1e3, at })));
  return chart({
    title: "Time of a step by its rows, t(n)", sentence: "As calibrated.", legend: names.map((name, at) => [name, hue(at)]),
    columns: ["report", "rows", "ms"], rows: points.map((each) => [names[each.at], String(each.rows), digits(each.ms)]),
    plot: () => ({
      height: 270, marginLeft: 44, marginBottom: 42, x: { label: "rows n", labelOffset: 38 }, y: { label: "ms", grid: true, zero: true },
      marks: [Plot.line(points, { x: "rows", y: "ms", z: "at", stroke: (each) => hue(each.at), strokeWidth: 2 }),
        Plot.dot(points, { x: "rows", y: "ms", fill: (each) => hue(each.at), r: 3 })],
    }),
  });
}

function lengthComparison(a, b, names) {
  const points = [a, b].flatMap((report, at) => report.replay.lengths.map(([length, count]) => ({ length, share: count / report.replay.steps.length, at })));
  const longest = Math.max(...points.map((each) => each.length));
  return chart({
    title: "Accepted length", sentence: "The share of steps that committed so many tokens.", legend: names.map((name, at) => [name, hue(at)]),
    columns: ["report", "tokens", "share of steps"], rows: points.map((each) => [names[each.at], String(each.length), percent(each.share)]),
    plot: () => ({
      height: 260, marginLeft: 44, fx: { label: "tokens", domain: d3.range(1, longest + 1) }, x: { axis: null, domain: [0, 1] },
      y: { label: "share of steps", percent: true, grid: true },
      marks: [Plot.barY(points, { fx: "length", x: "at", y: "share", fill: (each) => hue(each.at) })],
    }),
  });
}
