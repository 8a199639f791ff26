// The step as nested boxes: the entry, its layers, their kernels, coloured by time; and what is known of a kernel.

const moved = (work) => work.weight_bytes + work.value_bytes;

/** The least seconds of some work at the machine's measured peaks, and which of them limits it. */
function bound(work) {
  const [reading, computing] = work.least;
  return { seconds: Math.max(reading, computing), by: reading >= computing ? "memory" : "arithmetic" };
}

function stepSection(report) {
  const step = report.step;
  const timed = step.kernels.some((each) => each.seconds.length);
  const state = { place: 0, chosen: null };
  const panel = h("div", { class: "card", id: "kernel" });
  const boxes = h("div", { class: "boxes", tabindex: 0, role: "region", "aria-label": "The step's kernels" });
  const buttons = new Map();

  const time = (members, place = state.place) => sum(members.map((at) => step.kernels[at].seconds[place] || 0));
  const every = step.kernels.map((_, at) => at);

  function kernelButton(members) {
    const first = step.kernels[members[0]];
    const name = members.length === 1 ? first.name : first.label;
    const made = h("button", {
      type: "button", class: "kernel", "aria-pressed": "false", "aria-controls": "kernel", onclick: () => choose(members),
    }, h("span", { class: "name mono", title: name }, name), h("span", { class: "time" }), h("span", { class: "share" }));
    buttons.set(made, members);
    return made;
  }

  function partBox(part) {
    const inside = h("div", { class: "kernels" }, part.kernels.map(kernelButton));
    if (!part.name) return inside;
    return h("div", { class: "box" }, h("div", { class: "title" }, h("b", {}, part.name), clock(part.kernels.flat())), inside);
  }

  const clocks = [];
  function clock(members) {
    const made = h("span", { class: "muted" });
    clocks.push([made, members]);
    return made;
  }

  function groupBox(group) {
    const members = group.parts.flatMap((part) => part.kernels.flat());
    const inside = h("div", { class: "inside" }, group.parts.map(partBox));
    if (group.layers === 0) return inside;
    const count = group.layers > 1 ? `${group.title}, alike` : group.title;
    return h("div", { class: group.layers > 1 ? "box stacked" : "box" },
      h("div", { class: "title" }, h("b", {}, count), clock(members)), inside);
  }

  boxes.append(h("div", { class: "box" },
    h("div", { class: "title" }, h("b", {}, "@step"), clock(every)),
    h("div", { class: "inside" }, step.groups.map(groupBox))));
  for (const [name, count] of step.others) {
    boxes.append(h("div", { class: "box", style: "margin-top:10px" },
      h("div", { class: "title" }, h("b", {}, `@${name}`), h("span", { class: "muted" }, `${count} kernels`))));
  }

  function paint() {
    const total = time(every);
    for (const [made, members] of clocks) {
      made.textContent = timed ? `${members.length} kernels, ${seconds(time(members))}` : `${members.length} kernels`;
    }
    for (const [made, members] of buttons) {
      const own = time(members);
      const share = total ? own / total : 0;
      made.querySelector(".time").textContent = timed ? seconds(own) : "";
      made.querySelector(".share").textContent = timed ? percent(share) : "";
      const strength = timed ? Math.round(4 + 40 * Math.sqrt(share)) : 0;
      made.style.background = `color-mix(in srgb, var(--hue-1) ${strength}%, var(--surface))`;
      made.style.borderColor = `color-mix(in srgb, var(--hue-1) ${strength}%, var(--line))`;
    }
  }

  function choose(members) {
    state.chosen = members;
    for (const [made, own] of buttons) made.setAttribute("aria-pressed", own === members);
    panel.replaceChildren(...kernelDetail(report, members, state.place));
    drawAll();
  }

  const sizes = step.rows.map((rows, at) => [at, rows === 1 ? "1 row" : `${rows} rows`]);
  paint();
  choose([...buttons.values()].toSorted((a, b) => time(b) - time(a))[0]);
  const distinct = step.structures.length;
  return section(
    "step", "Step",
    `${step.kernels.length} kernels run ${distinct} distinct codes, in the order of the model. ` +
      (timed ? `Each was timed by itself within whole steps, with ${step.context} positions in the cache.` : "They were not timed."),
    timed ? h("div", { class: "toolbar" }, h("span", { class: "muted" }, "A step of"),
      segments("Rows of the step", sizes, 0, (place) => { state.place = place; paint(); choose(state.chosen); }),
      h("span", { class: "muted" }, "darker boxes take more of its time")) : null,
    h("div", { class: "split" }, h("div", { class: "card" }, boxes), panel),
  );
}

function kernelDetail(report, members, place) {
  const step = report.step;
  const structure = step.structures[step.kernels[members[0]].structure];
  const { name, label } = step.kernels[members[0]];
  const alike = members.length === 1 ? "" : `${members.length} kernels`;
  const tabs = [
    ["Measured", () => kernelFacts(report, structure, members, place)],
    ["IR", () => code(structure.ir, IR, `IR of ${structure.label}`)],
    structure.nests.length ? ["Nests", () => code(structure.nests.map((nest) => `// ${nest.name}\n${nest.text}`).join("\n"), SOURCE, "Loop nests")] : null,
    ...structure.sources.map((piece) => [piece.name, () => source(piece, step.dump)]),
  ].filter((each) => each);
  return [
    h("div", { class: "detail" }, h("div", { class: "line" }, h("h3", { class: "mono" }, members.length === 1 ? name : label), h("span", { class: "muted" }, alike))),
    ...tabbed("About the kernel", tabs),
  ];
}

function kernelFacts(report, structure, members, place) {
  const { step, roofs } = report;
  const timed = step.kernels[members[0]].seconds.length > 0;
  const rows = structure.work.map((work, at) => {
    const own = members.map((each) => step.kernels[each].seconds[at]);
    const mean = timed ? sum(own) / own.length : null;
    const limit = roofs ? bound(work) : null;
    return [
      String(work.rows), bytes(moved(work)), scaled(work.operations, ""),
      ...(timed ? [seconds(mean)] : []),
      ...(limit ? [seconds(limit.seconds), limit.by] : []),
      ...(timed && limit ? [mean > 0 ? percent(limit.seconds / mean) : "—"] : []),
    ];
  });
  const columns = ["rows", "bytes", "operations", ...(timed ? ["time"] : []), ...(roofs ? ["bound", "by"] : []),
    ...(timed && roofs ? ["reached"] : [])];
  const numeric = columns.map((name) => name !== "by");
  return h("div", { class: "facts" },
    table(columns, rows, numeric),
    h("p", { class: "muted", style: "margin-top:10px;font-size:13px" },
      `Bytes: weights once (${bytes(structure.work[0].weight_bytes)}), values for every row, and the cache. `,
      roofs ? "The bound is the longer of reading them and computing, at the machine's measured peaks; what fits a processor's cache may beat it." : ""),
    timed && members.length > 1 ? layersChart(step, members, place) : null,
    structure.resources.length ? [h("h3", {}, "On a GPU"), table(
      ["kernel", "sm", "launch", "registers", "shared bytes", "stack bytes"],
      structure.resources.map((each) => [each.kernel, each.capability, each.config, whole(each.registers), whole(each.shared), whole(each.stack)]),
      [false, false, false, true, true, true])] : null);
}

/** The layer that a kernel's name says, or its place among those that are alike. */
function layerOf(name, place) {
  const found = name.match(/(?:^|\.)(\d+)(?:\.|$)/);
  return found ? Number(found[1]) : place;
}

function layersChart(step, members, place) {
  const points = members.map((at, place_) => ({ layer: layerOf(step.kernels[at].name, place_), micro: step.kernels[at].seconds[place] * 1e6 }));
  return h("div", { style: "margin-top:16px" }, chart({
    title: "In every layer",
    sentence: `µs in a step of ${step.rows[place] === 1 ? "1 row" : `${step.rows[place]} rows`}`,
    columns: ["layer", "µs"],
    rows: points.map((each) => [String(each.layer), digits(each.micro)]),
    plot: () => ({
      height: 160, marginLeft: 44, marginBottom: 40, x: { label: "layer", labelOffset: 36, tickSize: 0, tickFormat: (at) => (at % 5 ? "" : String(at)) },
      y: { label: null, grid: true, ticks: 3, zero: true },
      marks: [Plot.barY(points, { x: "layer", y: "micro", fill: "var(--hue-1)", fillOpacity: 0.8, rx: 1 })],
    }),
  }));
}
