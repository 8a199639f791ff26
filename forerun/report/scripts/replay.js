// The replay of a generation: the tree of every step, what was accepted of it, and the text as it grew.

const PHASES = ["draft", "step", "verify", "commit"];
const TARGET = "target";

function replaySection(report) {
  const replay = report.replay;
  const steps = replay.steps;
  const words = new Map(replay.vocabulary);
  const last = steps.length - 1;
  const state = { at: 0, timer: null, pace: 400, begun: false };

  const tree = h("div", { class: "tree", tabindex: 0, role: "region", "aria-label": "The tree of this step" });
  const said = h("div", { class: "said", tabindex: 0, role: "region", "aria-label": "The text so far" });
  const told = h("p", { class: "told", "aria-live": "off" });
  const slider = h("input", { type: "range", min: 0, max: last, value: 0, "aria-label": "Step", oninput: () => { stop(); show(Number(slider.value)); } });
  const play = h("button", { type: "button", class: "primary", onclick: () => (state.timer ? stop() : start()) }, "Play");
  const pieces = steps.map((each, at) => piece(each, at));
  said.append(h("div", { class: "prompt" }, replay.prompt), h("div", {}, pieces));

  /** What a step added to the text; words of accepted drafts are underlined in their drafter's colour. */
  function piece(step, at) {
    const drafted = step.path.length > 1;
    const colour = drafted ? hue(step.proposers[step.path[1]]) : null;
    return h("span", {
      class: drafted ? "drafted" : null, style: drafted ? `text-decoration-color:${colour}` : null, hidden: true, "data-step": at,
    }, step.text || (replay.text ? "" : step.committed.map((token) => `${words.get(token)} `).join("")));
  }

  function show(at, begun = true) {
    state.at = at;
    state.begun = begun;
    slider.value = at;
    slider.setAttribute("aria-valuetext", `step ${at + 1} of ${steps.length}`);
    pieces.forEach((each, number) => {
      each.hidden = number > at;
      each.classList.toggle("fresh", number === at);
    });
    const shown = pieces[at];
    said.scrollTop = Math.max(0, shown.offsetTop - said.offsetTop - said.clientHeight + 80);
    const step = steps[at];
    tree.replaceChildren(treeOf(step, replay, words));
    tree.scrollLeft = 0;
    const drafted = step.path.length - 1;
    told.textContent =
      `Step ${at + 1} of ${steps.length}: ${step.tokens.length === 1 ? "the root alone" : `${step.tokens.length} rows`}, ` +
      `${drafted} of ${step.tokens.length - 1} drafted rows accepted, and one more token from the target; ` +
      `${seconds(step.phases[1])} in the step, ${seconds(step.phases[0])} drafting.`;
  }

  function start() {
    if (state.at === last || !state.begun) show(0);
    play.textContent = "Pause";
    told.setAttribute("aria-live", "off");
    const tick = () => {
      if (state.at === last) return stop();
      show(state.at + 1);
      state.timer = setTimeout(tick, state.pace);
    };
    state.timer = setTimeout(tick, state.pace);
  }
  function stop() {
    clearTimeout(state.timer);
    state.timer = null;
    play.textContent = "Play";
    told.setAttribute("aria-live", "polite");
  }
  const move = (by) => { stop(); show(Math.min(last, Math.max(0, state.at + by))); };

  const paces = [[1600, "¼×"], [400, "1×"], [100, "4×"]];
  const player = h("div", { class: "player" },
    play,
    h("button", { type: "button", "aria-label": "One step back", onclick: () => move(-1) }, "←"),
    h("button", { type: "button", "aria-label": "One step on", onclick: () => move(1) }, "→"),
    slider,
    segments("Speed", paces, 400, (pace) => { state.pace = pace; }),
  );
  const names = replay.proposers.map((name, at) => [words_(name), hue(at)]);
  const legend = h("div", { class: "legend", style: "padding:8px 16px" }, names.map(([name, colour]) => swatch(name, colour)),
    h("span", {}, "wider lines are likelier; accepted rows are bold, rejected ones dim"),
    h("span", {}, h("kbd", {}, "space"), " plays, ", h("kbd", {}, "←"), " ", h("kbd", {}, "→"), " step"));
  const card = h("div", { class: "card", id: "player", onkeydown: (event) => {
    const own = event.target.closest("button, input");
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length };
    if (event.key === " " && !own) { event.preventDefault(); state.timer ? stop() : start(); }
    else if (event.key in moves && !(own && own.tagName === "INPUT")) { event.preventDefault(); move(moves[event.key]); }
  } }, player, legend, h("div", { class: "stage" }, tree, said), told);
  // Shown first: a step of which much was accepted and something rejected, whose tree can be seen at once.
  const worth = (each) => 5 * Math.min(5, each.path.length) + 2 * Math.min(12, each.tokens.length - each.path.length) - 9 * Math.max(0, deepest(each) - 8);
  const richest = d3.maxIndex(steps, worth);
  drawLater(tree, () => show(Math.max(0, richest), false));

  return section(
    "replay", "Replay",
    `${whole(replay.token_ids.length)} tokens in ${steps.length} steps. Each step evaluates a tree of proposed tokens, ` +
      "and commits the path that the model itself would have taken." +
      (replay.plain ? ` Plain decoding, run for comparison, gives ${replay.plain.same ? "the same" : "other"} first ${replay.plain.tokens} tokens.` : ""),
    card,
    h("div", { class: "columns", style: "margin-top:20px" },
      h("div", { class: "card padded third" }, lengthsChart(replay)),
      h("div", { class: "card padded third" }, draftersChart(replay)),
      h("div", { class: "card padded third" }, phasesChart(replay))),
  );
}

/** The depth of a step's tree. */
function deepest(step) {
  const depths = [];
  step.parents.forEach((parent, row) => { depths[row] = row === 0 ? 0 : depths[parent] + 1; });
  return Math.max(...depths);
}

/** A class's name as words. */
const words_ = (name) => name.split(" + ").map((each) => each.replace(/(?<=[a-z0-9])(?=[A-Z])/g, " ").toLowerCase()).join(" + ");

function proposerColour(replay, name) {
  return name === TARGET ? "var(--hue-rest)" : hue(replay.proposers.indexOf(name));
}

/** A token as a tree shows it: spaces and line ends are visible. */
function visible(text, most) {
  const shown = text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ /, "·").replace(/ /g, " ");
  return shown.length > most ? `${shown.slice(0, most - 1)}…` : shown;
}

function treeOf(step, replay, words) {
  const rows = step.tokens.map((token, row) => ({ row, token, parent: step.parents[row] }));
  const accepted = new Set(step.path);
  const final = step.path[step.path.length - 1];
  const bonus = { row: rows.length, token: step.committed[step.committed.length - 1], parent: final, bonus: true };
  const root = d3.stratify().id((each) => each.row).parentId((each) => (each.row === 0 ? null : each.parent))([...rows, bonus]);
  root.sort((a, b) => accepted.has(b.data.row) - accepted.has(a.data.row) || a.data.row - b.data.row);
  const across = Math.max(66, Math.min(118, 700 / (root.height + 1)));
  d3.tree().nodeSize([21, across])(root);
  const heights = root.descendants().map((each) => each.x);
  const [top, bottom] = [Math.min(...heights), Math.max(...heights)];
  const width = (root.height + 1) * across + 60;
  const height = Math.max(372, bottom - top + 60);
  const svg = d3.create("svg").attr("width", width).attr("height", height).attr("role", "img").attr("aria-label", treeInWords(step, words));
  const body = svg.append("g").attr("transform", `translate(22,${(height - bottom - top) / 2})`);
  const kind = (node) => (node.data.bonus ? "bonus" : accepted.has(node.data.row) ? "accepted" : "rejected");
  const colour = (node) => (node.data.bonus ? "var(--accent)" : hue(step.proposers[node.data.row]));
  const line = d3.linkHorizontal().x((node) => node.y).y((node) => node.x);
  body.selectAll("path").data(root.links().toSorted((a, b) => (kind(a.target) === "rejected" ? -1 : 1) - (kind(b.target) === "rejected" ? -1 : 1))).join("path")
    .attr("class", (link) => kind(link.target)).attr("d", line).attr("stroke", (link) => colour(link.target))
    .attr("stroke-width", (link) => (link.target.data.bonus ? 1.5 : 1 + 7 * step.probabilities[link.target.data.row]))
    .attr("stroke-dasharray", (link) => (link.target.data.bonus ? "3 3" : null));
  const node = body.selectAll("g").data(root.descendants()).join("g").attr("class", kind).attr("transform", (each) => `translate(${each.y},${each.x})`);
  node.append("circle").attr("r", (each) => (kind(each) === "rejected" ? 3.5 : 5)).attr("fill", colour);
  node.append("title").text((each) => (each.data.bonus ? "chosen by the target" : each.data.row === 0 ? "the last token so far"
    : `row ${each.data.row}, ${words_(replay.proposers[step.proposers[each.data.row]])}, p = ${digits(step.probabilities[each.data.row])}`));
  node.append("text").attr("x", 9).attr("y", 4).attr("stroke", "var(--surface)").attr("stroke-width", 4).attr("paint-order", "stroke")
    .text((each) => visible(words.get(each.data.token), Math.floor((across - 14) / 7.4)));
  return svg.node();
}

function treeInWords(step, words) {
  const path = step.committed.map((token) => JSON.stringify(words.get(token))).join(", ");
  return `A tree of ${step.tokens.length} rows; committed: ${path}`;
}

function lengthsChart(replay) {
  const points = replay.lengths.map(([length, count]) => ({ length, count }));
  return chart({
    title: "Accepted length",
    sentence: `Tokens of a step; ${digits(replay.accepted_length)} on average.`,
    columns: ["tokens", "steps"], rows: points.map((each) => [String(each.length), String(each.count)]),
    plot: () => ({
      height: 210, marginLeft: 12, marginTop: 24, marginBottom: 42, x: { label: "tokens", labelOffset: 36, tickSize: 0, domain: d3.range(1, Math.max(...points.map((each) => each.length)) + 1) },
      y: { axis: null },
      marks: [
        Plot.barY(points, { x: "length", y: "count", fill: "var(--accent)", rx: 3 }),
        Plot.text(points, { x: "length", y: "count", text: "count", dy: -8, fill: "var(--ink)" }),
      ],
    }),
  });
}

function draftersChart(replay) {
  const points = replay.tokens_by.map(([name, count]) => ({ name: words_(name), colour: proposerColour(replay, name), count, rate: count / replay.decode_seconds }));
  points.sort((a, b) => b.rate - a.rate);
  return chart({
    title: "Tokens per second by drafter",
    sentence: `${digits(replay.tokens_per_second)} in all. Every step adds one token of the target's own.`,
    columns: ["drafter", "tokens", "tokens per second"], rows: points.map((each) => [each.name, String(each.count), digits(each.rate)]),
    plot: () => ({
      height: 14 + points.length * 51, marginLeft: 4, marginRight: 44, marginTop: 8, x: { axis: null }, y: { axis: null, domain: points.map((each) => each.name) },
      marks: [
        Plot.barX(points, { x: "rate", y: "name", fill: "colour", rx: 3, insetTop: 20, insetBottom: 8 }),
        Plot.text(points, { x: 0, y: "name", text: "name", textAnchor: "start", dy: -13, fill: "var(--ink)" }),
        Plot.text(points, { x: "rate", y: "name", text: (each) => digits(each.rate), textAnchor: "start", dx: 6, dy: 6, fill: "var(--ink)" }),
      ],
    }),
  });
}

function phaseTimes(replay) {
  const rest = Math.max(0, replay.decode_seconds - sum(replay.phases));
  return [...PHASES.map((name, at) => ({ name, time: replay.phases[at] })), { name: "learn and the rest", time: rest }];
}

function phasesChart(replay) {
  const points = phaseTimes(replay);
  const colours = [hue(1), hue(0), hue(2), hue(3), "var(--hue-rest)"];
  return chart({
    title: "Where the time went",
    sentence: `${seconds(replay.decode_seconds)} of decoding, after ${seconds(replay.prefill_seconds)} for the prompt.`,
    columns: ["phase", "time", "share"], rows: points.map((each) => [each.name, seconds(each.time), percent(each.time / replay.decode_seconds)]),
    plot: () => ({
      height: 40 + points.length * 34, marginLeft: 118, marginRight: 62, marginTop: 8, x: { axis: null }, y: { label: null, tickSize: 0, domain: points.map((each) => each.name) },
      marks: [
        Plot.barX(points, { x: "time", y: "name", fill: (each) => colours[points.indexOf(each)], rx: 3, insetTop: 6, insetBottom: 6 }),
        Plot.text(points, { x: "time", y: "name", text: (each) => seconds(each.time), textAnchor: "start", dx: 6, fill: "var(--ink)" }),
      ],
    }),
  });
}
