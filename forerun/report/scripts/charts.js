// The cost of a step: kernels under the machine's roofs, the time of a step by its rows, and memory.

function costSection(report) {
  const charts = [];
  const { step, roofs, cost, memory, replay } = report;
  const timed = step && step.kernels.some((each) => each.seconds.length);
  if (timed && roofs) charts.push(h("div", { class: "card padded whole" }, rooflineChart(step, roofs)));
  if (cost) charts.push(h("div", { class: "card padded half" }, costChart(cost, replay)));
  if (memory.length) charts.push(h("div", { class: "card padded half" }, memoryChart(memory)));
  if (!charts.length) return null;
  return section("cost", "Cost",
    "What the machine allows, what the kernels reach, and what a further row of a tree costs.",
    h("div", { class: "columns" }, charts));
}

/** The kernels of a step, those of one structure together: operations and bytes of one, its mean time. */
function structurePoints(step) {
  return step.structures.flatMap((structure, number) => {
    const own = step.kernels.filter((each) => each.structure === number && each.seconds.length);
    return structure.work.map((work, place) => {
      const total = sum(own.map((each) => each.seconds[place]));
      const mean = own.length ? total / own.length : 0;
      return { label: structure.label, kind: structure.kind, rows: work.rows, count: own.length, total, mean, work,
        intensity: work.operations / moved(work), rate: work.operations / mean };
    });
  });
}

function rooflineChart(step, roofs) {
  const all = structurePoints(step).filter((each) => each.mean > 0);
  const points = all.filter((each) => each.work.operations > 0);
  const ridge = roofs.operations / roofs.bandwidth;
  const low = Math.min(...points.map((each) => each.intensity), 0.1);
  const high = Math.max(...points.map((each) => each.intensity), ridge * 4);
  const least = Math.min(...points.map((each) => each.rate)) / 2;
  const roof = [[low, low * roofs.bandwidth], [ridge, roofs.operations], [high, roofs.operations]];
  const colours = new Map(step.rows.map((rows, at) => [rows, hue(at)]));
  const [height, marginTop, marginBottom, top] = [380, 24, 40, roofs.operations * 2];
  const named = apart(points.filter((each) => each.rows === step.rows[step.rows.length - 1]), height - marginTop - marginBottom, least, top);
  return chart({
    title: "Kernels under the roofs",
    sentence: `Operations per second against operations per byte; area is the time of all such kernels in a step. ` +
      `${roofs.how} ${scaled(roofs.bandwidth, "B/s")}, ${scaled(roofs.operations, "")} operations a second.`,
    legend: step.rows.map((rows) => [rows === 1 ? "1 row" : `${rows} rows`, colours.get(rows)]),
    columns: ["kernel", "rows", "kernels", "operations per byte", "operations per second", "time in a step", "of the bound"],
    rows: all.map((each) => [each.label, String(each.rows), String(each.count), digits(each.intensity),
      scaled(each.rate, ""), seconds(each.total), percent(bound(each.work).seconds / each.mean)]),
    plot: () => ({
      height, marginLeft: 72, marginBottom, marginTop, marginRight: 170,
      x: { type: "log", label: "operations per byte", domain: [low / 1.2, high], tickFormat: (x) => digits(x), ticks: decades(low / 1.2, high) },
      y: { type: "log", label: "operations per second", domain: [least, top], grid: true, tickFormat: (y) => scaled(y, ""), ticks: decades(least, top) },
      r: { range: [3, 22] },
      marks: [
        Plot.line(roof, { stroke: "var(--ink)", strokeWidth: 1.5, clip: true }),
        Plot.text([{ x: Math.sqrt(Math.max(low, least / roofs.bandwidth) * ridge) }], { x: "x", y: (each) => each.x * roofs.bandwidth,
          text: () => "memory", dy: -10, dx: -16, fill: "var(--muted)" }),
        Plot.text([{ x: high }], { x: "x", y: roofs.operations, text: () => "arithmetic", dy: -10, textAnchor: "end", fill: "var(--muted)" }),
        Plot.dot(points, { x: "intensity", y: "rate", r: "total", fill: (each) => colours.get(each.rows), fillOpacity: 0.75,
          stroke: "var(--surface)", clip: true }),
        Plot.link(named, { x1: "intensity", y1: "rate", x2: high, y2: "beside", stroke: "var(--line)" }),
        Plot.text(named, { x: high, y: "beside", text: "label", dx: 6, textAnchor: "start", fill: "var(--ink)" }),
        Plot.tip(points, Plot.pointer({ x: "intensity", y: "rate", fill: "var(--surface)", stroke: "var(--line)",
          title: (each) => `${each.label}, ${each.rows} rows\n${each.count} kernels, ${seconds(each.total)} in a step\n` +
            `${percent(bound(each.work).seconds / each.mean)} of the ${bound(each.work).by} bound` })),
      ],
    }),
  });
}

/** 1 and 3 times the powers of ten between two numbers. */
const decades = (low, high) => d3.range(-3, 16).flatMap((power) => [10 ** power, 3 * 10 ** power]).filter((each) => each >= low && each <= high);

/** Points with heights for their labels, in the order of their rates, at least a line apart. */
function apart(points, height, least, top) {
  const line = 15;
  const place = (rate) => height * (Math.log(top / rate) / Math.log(top / least));
  let last = -line;
  return points.toSorted((a, b) => b.rate - a.rate).map((each) => {
    last = Math.max(place(each.rate), last + line);
    return { ...each, beside: top * (least / top) ** (last / height) };
  });
}

/** t(n) made non-decreasing, as the policy reads it (pool adjacent violators). */
function isotonic(values) {
  const pools = [];
  for (const value of values) {
    let [mean, count] = [value, 1];
    while (pools.length && pools[pools.length - 1][0] > mean) {
      const [before, size] = pools.pop();
      [mean, count] = [(before * size + mean * count) / (size + count), size + count];
    }
    pools.push([mean, count]);
  }
  return pools.flatMap(([mean, count]) => Array(count).fill(mean));
}

function costChart(cost, replay) {
  const fitted = isotonic(cost.seconds);
  const points = cost.rows.map((rows, at) => ({ rows, ms: cost.seconds[at] * 1e3, fitted: fitted[at] * 1e3 }));
  const sizes = replay ? d3.rollups(replay.steps, (steps) => steps.length, (step) => step.tokens.length).map(([rows, count]) => ({ rows, count })) : [];
  sizes.sort((a, b) => a.rows - b.rows);
  const top = Math.max(...points.map((each) => each.ms)) * 1.05;
  const most = Math.max(1, ...sizes.map((each) => each.count));
  const chosen = new Map(sizes.map((each) => [each.rows, each.count]));
  const counts = [...new Set([...cost.rows, ...chosen.keys()])].sort((a, b) => a - b);
  return chart({
    title: "Time of a step by its rows, t(n)",
    sentence: sizes.length ? "Bars: how often the policy chose a tree of so many rows in the generation." : "As calibrated.",
    legend: [["t(n)", "var(--accent)"], ...(sizes.length ? [["trees of n rows", "var(--hue-1)"]] : [])],
    columns: ["rows", "ms", "trees"],
    rows: counts.map((rows) => {
      const at = cost.rows.indexOf(rows);
      return [String(rows), at < 0 ? "" : digits(cost.seconds[at] * 1e3), String(chosen.get(rows) || 0)];
    }),
    plot: () => ({
      height: 270, marginLeft: 44, marginBottom: 42, marginRight: 24,
      x: { label: "rows n", ticks: 8, domain: [0, cost.rows[cost.rows.length - 1]], labelOffset: 38 },
      y: { label: "ms", grid: true, domain: [0, top], ticks: 5 },
      marks: [
        Plot.ruleX(sizes, { x: "rows", y1: 0, y2: (each) => (each.count / most) * top * 0.55, stroke: "var(--hue-1)", strokeWidth: 5, strokeOpacity: 0.75 }),
        Plot.text(sizes.filter((each) => each.count >= most * 0.25), { x: "rows", y: (each) => (each.count / most) * top * 0.55, dy: -7, text: "count", fill: "var(--ink)" }),
        Plot.line(points, { x: "rows", y: "fitted", stroke: "var(--accent)", strokeWidth: 2 }),
        Plot.dot(points, { x: "rows", y: "ms", fill: "var(--accent)", r: 3 }),
        Plot.tip(points, Plot.pointerX({ x: "rows", y: "ms", fill: "var(--surface)", stroke: "var(--line)",
          title: (each) => `${each.rows} rows\n${digits(each.ms)} ms` })),
      ],
    }),
  });
}

function memoryChart(memory) {
  return chart({
    title: "Memory",
    sentence: `${bytes(sum(memory.map((each) => each.bytes)))} in all, for one sequence of the greatest length.`,
    columns: ["what", "bytes", "of"],
    rows: memory.map((each) => [each.name, whole(each.bytes), each.note]),
    plot: () => ({
      height: 60 + memory.length * 56, marginLeft: 130, marginRight: 70,
      x: { axis: null }, y: { label: null, tickSize: 0, domain: memory.map((each) => each.name) },
      marks: [
        Plot.barX(memory, { y: "name", x: "bytes", fill: "var(--accent)", insetTop: 8, insetBottom: 8, rx: 3 }),
        Plot.text(memory, { y: "name", x: "bytes", text: (each) => bytes(each.bytes), dx: 8, textAnchor: "start", fill: "var(--ink)", fontWeight: 600 }),
      ],
    }),
  });
}
