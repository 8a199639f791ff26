"use strict";
// Elements, numbers, tables and charts: what all sections share.

/** An element; children are nodes or texts, null for nothing. `on*` properties are listeners, others attributes. */
function h(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const whole = (value) => value.toLocaleString("en-US");
const digits = (value, count = 3) => {
  if (value === 0) return "0";
  const places = Math.max(0, count - 1 - Math.floor(Math.log10(Math.abs(value))));
  return value.toLocaleString("en-US", { minimumFractionDigits: 0, maximumFractionDigits: Math.min(places, 6) });
};

function seconds(value) {
  if (value >= 1) return `${digits(value)} s`;
  return value >= 1e-3 ? `${digits(value * 1e3)} ms` : `${digits(value * 1e6)} µs`;
}

function scaled(value, unit) {
  for (const [prefix, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (value >= size) return `${digits(value / size)} ${prefix}${unit}`;
  }
  return `${digits(value)} ${unit}`.trim();
}
const bytes = (value) => scaled(value, "B");
const percent = (value) => `${digits(value * 100, value >= 0.0995 ? 2 : 1)}%`;

/** A table of rows; `numeric` says which columns hold numbers, aligned to the right. */
function table(columns, rows, numeric = columns.map((_, at) => at > 0)) {
  const kind = (at) => (numeric[at] ? { class: "number" } : {});
  const head = columns.map((name, at) => h("th", { scope: "col", ...kind(at) }, name));
  const lines = rows.map((row) => h("tr", {}, row.map((cell, at) => h("td", kind(at), cell))));
  return h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, lines));
}

/** A chart with its title, a sentence, a legend, and its numbers as a table for those who cannot see it. */
function chart({ title, sentence = "", legend = [], plot, columns, rows }) {
  const place = h("div");
  const figure = h(
    "figure", { class: "chart" },
    h("figcaption", {}, h("b", {}, title), sentence),
    legend.length ? h("div", { class: "legend" }, legend.map(([name, colour]) => swatch(name, colour))) : null,
    place,
    h("details", { class: "data" }, h("summary", {}, "Numbers"),
      h("div", { tabindex: 0, role: "region", "aria-label": `${title}, numbers` }, table(columns, rows))),
  );
  drawLater(place, () => {
    const drawn = Plot.plot({ width: Math.max(280, place.clientWidth), ...plot() });
    drawn.setAttribute("role", "img");
    drawn.setAttribute("aria-label", `${title}. ${sentence}`);
    for (const part of drawn.querySelectorAll("[aria-label]")) part.removeAttribute("aria-label");
    place.replaceChildren(drawn);
  });
  return figure;
}

const waiting = [];
/** Draws when the place is on the page and near the window, and has a width; the rest of the page is there first. */
function drawLater(place, draw) {
  waiting.push([place, draw]);
}
function drawAll() {
  const near = new IntersectionObserver((seen) => {
    for (const each of seen) {
      if (!each.isIntersecting) continue;
      near.unobserve(each.target);
      each.target.draw();
    }
  }, { rootMargin: "600px" });
  for (const [place, draw] of waiting.splice(0)) {
    place.draw = draw;
    near.observe(place);
  }
}

const swatch = (name, colour) => h("span", {}, h("i", { style: `background:${colour}`, "aria-hidden": "true" }), name);
const HUES = 5;
const hue = (at) => (at >= 0 && at < HUES ? `var(--hue-${at})` : "var(--hue-rest)");

/** One of several choices, as radio buttons in a row. */
function segments(label, choices, chosen, choose) {
  const group = `choice-${segments.count = (segments.count || 0) + 1}`;
  const buttons = choices.map(([value, text]) => h("label", {}, h("input", {
    type: "radio", name: group, value, checked: value === chosen, onchange: () => choose(value),
  }), text));
  return h("span", { class: "segments", role: "radiogroup", "aria-label": label }, buttons);
}

/** Tabs over a panel; each tab is [name, a function that makes its contents]. Arrow keys change tabs. */
function tabbed(label, tabs) {
  const id = `tabs-${tabbed.count = (tabbed.count || 0) + 1}`;
  const panel = h("div", { class: "panel", role: "tabpanel", id, tabindex: 0 });
  const buttons = tabs.map(([name], at) => h("button", {
    type: "button", role: "tab", id: `${id}-${at}`, "aria-controls": id, onclick: () => show(at),
  }, name));
  function show(at) {
    buttons.forEach((each, number) => {
      each.setAttribute("aria-selected", number === at);
      each.tabIndex = number === at ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", `${id}-${at}`);
    panel.replaceChildren(...[tabs[at][1]()].flat());
    panel.scrollTop = 0;
    tabbed.last = tabs[at][0];
  }
  const list = h("div", { class: "tabs", role: "tablist", "aria-label": label, onkeydown: (event) => {
    const at = buttons.indexOf(document.activeElement);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (next === undefined || !buttons[next]) return;
    event.preventDefault();
    show(next);
    buttons[next].focus();
  } }, buttons);
  const kept = tabs.findIndex(([name]) => name === tabbed.last);
  show(Math.max(0, kept));
  return [list, panel];
}

function section(id, title, sentence, ...children) {
  return h("section", { id, "aria-labelledby": `${id}-title` },
    h("header", {}, h("h2", { id: `${id}-title` }, title), h("p", {}, sentence)), children);
}

function figures(items) {
  const shown = items.filter((each) => each).map(([name, value, unit, key]) =>
    h("div", key ? { class: "key" } : {}, h("dt", {}, name), h("dd", {}, value, unit ? h("small", {}, unit) : null)));
  return h("dl", { class: "figures" }, shown);
}
