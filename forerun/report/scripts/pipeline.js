// The pipeline: the passes in order, and the IR after the one that is chosen.

function pipelineSection(report) {
  const passes = report.passes;
  const slowest = Math.max(...passes.slice(1).map((each) => each.seconds));
  const detail = h("div", { class: "card", id: "pass" });
  const rows = passes.map((each, at) => h(
    "div", { role: "option", id: `pass-${at}`, class: each.text === null ? "pass still" : "pass", onclick: () => choose(at) },
    h("span", { class: "muted" }, String(at)),
    h("span", { class: "name", title: each.name }, each.name),
    h("span", { class: "meter", "aria-hidden": "true" }, h("i", { style: `width:${Math.min(100, (100 * each.seconds) / slowest)}%` })),
    h("span", { class: "number right" }, digits(each.seconds * 1e3)),
    h("span", { class: "number right" }, change(each)),
  ));
  const list = h("div", {
    class: "list", role: "listbox", tabindex: 0, "aria-label": "Passes", "aria-controls": "pass",
    onkeydown: (event) => {
      const next = { ArrowDown: chosen + 1, ArrowUp: chosen - 1, Home: 0, End: passes.length - 1 }[event.key];
      if (next === undefined || !passes[next]) return;
      event.preventDefault();
      choose(next);
      rows[next].scrollIntoView({ block: "nearest" });
    },
  }, rows);
  let chosen = 0;

  function choose(at) {
    rows.forEach((row, number) => row.setAttribute("aria-selected", number === at));
    list.setAttribute("aria-activedescendant", `pass-${at}`);
    chosen = at;
    detail.replaceChildren(...passDetail(passes, at));
  }

  choose(passes.findLastIndex((each) => each.text !== null));
  const counts = passes.map((each) => each.after);
  const total = sum(passes.map((each) => each.seconds));
  return section(
    "pipeline", "Pipeline",
    `${passes.length - 1} passes take a traced forward pass of ${whole(counts[0])} operations to a planned step of ` +
      `${whole(counts[counts.length - 1])}, in ${seconds(total)}, the import included.`,
    h("div", { class: "split" },
      h("div", { class: "card" }, h("div", { class: "head", "aria-hidden": "true" },
        h("span"), h("span", {}, "pass"), h("span"), h("span", { class: "right" }, "ms"), h("span", { class: "right" }, "operations")), list),
      detail),
    h("div", { class: "card padded", style: "margin-top:20px" }, operationsChart(passes)),
  );
}

const change = (each) => {
  const more = each.after - each.before;
  return more === 0 ? "" : `${more > 0 ? "+" : "−"}${whole(Math.abs(more))}`;
};

function passDetail(passes, at) {
  const each = passes[at];
  const before = passes.slice(0, at).findLast((one) => one.text !== null);
  const shown = each.text === null ? before.text : each.text;
  const isNew = each.text === null ? () => false : newLines(at === 0 ? null : before.text);
  const size = `${whole(each.size)} characters; layers that are alike are written once`;
  return [
    h("div", { class: "detail" },
      h("div", { class: "line" }, h("h3", {}, each.name),
        h("span", { class: "muted" }, `${whole(each.before)} → ${whole(each.after)} operations, ${seconds(each.seconds)}`)),
      each.text === null ? h("p", { class: "muted" }, "Changed nothing.") : null,
      each.notes.length ? h("ul", {}, each.notes.map((note) => h("li", {}, note))) : null,
      h("p", { class: "muted small" }, size)),
    code(shown, IR, `IR after ${each.name}`, isNew),
  ];
}

function operationsChart(passes) {
  const points = passes.map((each, at) => ({ at, ...each }));
  const changed = points.filter((each) => each.at > 0 && each.after !== each.before);
  const largest = changed.toSorted((a, b) => Math.abs(b.after - b.before) - Math.abs(a.after - a.before)).slice(0, 5);
  return chart({
    title: "Operations after each pass",
    sentence: "Raising and canonicalizing make the graph smaller; the cache and the kernels make it larger again.",
    columns: ["pass", "before", "after", "ms"],
    rows: passes.map((each) => [each.name, whole(each.before), whole(each.after), digits(each.seconds * 1e3)]),
    plot: () => ({
      height: 190, marginLeft: 52, marginTop: 30, marginBottom: 24,
      x: { label: null, ticks: points.length, tickFormat: (at) => String(at), tickSize: 0 },
      y: { grid: true, label: null, zero: true, ticks: 4, nice: true },
      marks: [
        Plot.areaY(points, { x: "at", y: "after", curve: "step", fill: "var(--accent)", fillOpacity: 0.12 }),
        Plot.lineY(points, { x: "at", y: "after", curve: "step", stroke: "var(--accent)", strokeWidth: 2 }),
        Plot.text(largest, {
          x: "at", y: (each) => Math.max(each.before, each.after), dy: -8, lineAnchor: "bottom", fill: "var(--ink)", text: "name", fontSize: 11.5,
        }),
        Plot.tip(points, Plot.pointerX({ x: "at", y: "after", fill: "var(--surface)", stroke: "var(--line)",
          title: (each) => `${each.name}\n${whole(each.before)} → ${whole(each.after)} operations\n${seconds(each.seconds)}` })),
      ],
    }),
  });
}
