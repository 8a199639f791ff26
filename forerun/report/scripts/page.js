// The page: which sections there are, the navigation, and the theme.

function overview(report) {
  const { about, replay, cost, step, memory } = report;
  const plain = replay ? replay.plain : null;
  const items = [
    replay ? ["tokens per second", digits(replay.tokens_per_second), "", true] : null,
    plain ? [`plain decoding's ${digits(plain.tokens_per_second)} tokens/s`, `${digits(replay.tokens_per_second / plain.tokens_per_second)}×`] : null,
    replay ? ["tokens a step", digits(replay.accepted_length)] : null,
    cost ? ["step of one row", seconds(cost.seconds[0]).split(" ")[0], seconds(cost.seconds[0]).split(" ")[1]] : null,
    step ? ["kernels of a step", whole(step.kernels.length), `${step.structures.length} distinct`] : null,
    memory.length ? [memory[0].name, ...bytes(memory[0].bytes).split(" ")] : null,
    ["compiled in", ...seconds(about.compile_seconds).split(" ")],
  ];
  return h("div", { class: "hero" }, h("h1", {}, about.model),
    h("p", {}, `${about.strategy} on ${about.target}, ${about.dtype} weights, up to ${whole(about.max_length)} positions. ` +
      `${about.machine}; forerun ${about.forerun}, ${about.created.slice(0, 16).replace("T", " ")} UTC.`),
    figures(items),
    report.notes.length ? h("ul", { class: "notes" }, report.notes.map((note) => h("li", {}, note))) : null);
}

function sectionsOf(report) {
  const made = [
    ["pipeline", "Pipeline", pipelineSection(report)],
    ["step", "Step", report.step ? stepSection(report) : null],
    ["cost", "Cost", costSection(report)],
    ["replay", "Replay", report.replay && report.replay.steps.length ? replaySection(report) : null],
  ].filter(([, , part]) => part);
  return [[overview(report), ...made.map(([, , part]) => part)], made.map(([id, name]) => [id, name])];
}

function navigation(links) {
  const nav = document.getElementById("nav");
  const made = links.map(([id, name]) => h("a", { href: `#${id}` }, name));
  nav.replaceChildren(...made);
  const seen = new IntersectionObserver((entries) => {
    for (const each of entries) {
      if (!each.isIntersecting) continue;
      for (const link of made) {
        if (link.hash === `#${each.target.id}`) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    }
  }, { rootMargin: "-30% 0px -60% 0px" });
  for (const [id] of links) {
    const part = document.getElementById(id);
    if (part) seen.observe(part);
  }
}

function themes() {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const tell = () => {
    button.setAttribute("aria-pressed", dark());
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", dark() ? "Light theme" : "Dark theme");
    button.removeAttribute("aria-pressed");
  };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; tell(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
  tell();
}

themes();
const report = JSON.parse(document.getElementById("data").textContent);
const [parts, links] = report.kind === "comparison" ? comparison(report) : sectionsOf(report);
document.getElementById("main").replaceChildren(...parts);
navigation(links);
drawAll();
document.documentElement.dataset.ready = "true";
