// The page: opens a bundle, streams a text, and draws the tree of each step.
import { Tokenizer } from "@huggingface/tokenizers";
import { Model, generate } from "./forerun.js";

const [LINE, GAP, PAD] = [26, 18, 7]; // a line's height, the length of an edge, the space around a text, in pixels
const find = (id) => document.getElementById(id);
const escaped = (text) => text.replace(/[&<>"]/g, (each) => `&#${each.charCodeAt()};`);
const [form, pen, firsts] = [find("form"), document.createElement("canvas").getContext("2d"), new Map()];
let [opened, running] = [null, false];

/** Opens a bundle: its model, how a text becomes tokens and back, and the label of a token in a drawing. */
async function open(address) {
  find("status").textContent = "Reading the bundle …";
  const folder = new URL(address.replace(/\/*$/, "/"), location.href);
  const model = await Model.open(folder);
  let codec = { encode: (text) => ({ ids: text.match(/\d+/g)?.map(Number) ?? [] }), decode: (ids) => ids.join(" ") };
  if (model.manifest.tokenizer.length) { // without one, a text is the ids of its tokens
    const file = await fetch(new URL("tokenizer/tokenizer.json", folder));
    codec = new Tokenizer(await file.json(), { clean_up_tokenization_spaces: false });
  }
  const decode = (ids) => codec.decode(ids, { skip_special_tokens: true });
  const shown = (id) => codec.decode([id]).replaceAll(" ", "␣").replaceAll("\n", "⏎");
  const label = (id) => (/^$|\ufffd/.test(shown(id)) ? `#${id}` : shown(id)); // a part of a character has no text
  return { address, model, encode: (text) => codec.encode(text).ids, decode, label };
}

/** Returns the SVG of a step's tree. The accepted path is its first line; every other branch begins a line. */
function drawing({ tokens, parents, path, added }, label) {
  const kind = (row) => (row === 0 ? "root" : path.includes(row) ? "accepted" : "rejected");
  const nodes = tokens.map((token, row) => ({ text: label(token), parent: parents[row], kind: kind(row) }));
  if (added.length === path.length) nodes.push({ text: label(added.at(-1)), parent: path.at(-1), kind: "own" });
  let [lines, width, drawn] = [0.5, 0, ""];
  pen.font = getComputedStyle(find("trees")).font;
  const place = (node, x) => {
    const [right, y] = [x + pen.measureText(node.text).width + 2 * PAD, lines * LINE];
    width = Math.max(width, right);
    drawn += `<g class="${node.kind}"><rect x="${x}" y="${y - 10}" width="${right - x}" height="20" rx="5"/>`;
    drawn += `<text x="${x + PAD}" y="${y + 4.5}">${escaped(node.text)}</text></g>`;
    const children = nodes.filter((each) => nodes[each.parent] === node);
    children.sort((one, other) => (one.kind === "rejected") - (other.kind === "rejected"));
    children.forEach((child, index) => {
      const down = (lines += index > 0) * LINE - y;
      drawn += `<path class="${child.kind}" d="M${right} ${y}c${GAP / 2} 0 ${GAP / 2} ${down} ${GAP} ${down}"/>`;
      place(child, right + GAP);
    });
  };
  place(nodes[0], 1);
  const told = escaped(`${path.length - 1} of ${tokens.length - 1} drafts accepted: ${added.map(label).join(" ")}`);
  return `<svg width="${width + 1}" height="${(lines + 0.5) * LINE}" role="img" aria-label="${told}">${drawn}</svg>`;
}

/** Generates a text and shows each step. */
async function run() {
  const [prompt, count, rows] = [form.prompt.value, form.count.valueAsNumber, form.rows.valueAsNumber];
  if (opened?.address !== form.bundle.value) opened = await open(form.bundle.value);
  const { model, encode, decode, label, address } = opened;
  const [ids, text, most] = [encode(prompt), [], model.limits.max_length];
  if (!ids.length || ids.length + count > most) throw new Error(`Prompt and text have 1 to ${most} tokens together.`);
  find("status").textContent = find("trees").textContent = "";
  let [steps, spent, started] = [0, 0, performance.now()];
  for await (const step of generate(model, ids, count, rows)) {
    spent += performance.now() - started;
    const ends = [ids, [...ids, ...text]].map((each) => decode(each).length);
    text.push(...step.added);
    const all = decode([...ids, ...text]);
    const [given, older, newer] = [all.slice(0, ends[0]), all.slice(...ends), all.slice(ends[1])].map(escaped);
    find("text").innerHTML = `<b>${given}</b>${older}<mark>${newer}</mark>`;
    find("text").dataset.tokens = text;
    find("counter").textContent = `${text.length} tokens in ${++steps} steps`;
    const item = `<li><p><b>+${step.added.length}</b> step ${steps}</p>${drawing(step, label)}</li>`;
    find("trees").insertAdjacentHTML("afterbegin", item);
    await new Promise((done) => setTimeout(done)); // the browser paints
    if (!running) return;
    started = performance.now();
  }
  const key = [address, prompt, count].join("\n");
  if (!firsts.has(key)) firsts.set(key, String(text));
  const cells = [rows, text.length, steps, (text.length / steps).toFixed(2), (spent / text.length).toFixed(1)];
  cells.push(firsts.get(key) === String(text) ? "same" : "differs");
  find("runs").insertAdjacentHTML("beforeend", `<tr><td>${cells.join("<td>")}`);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  form.go.disabled = running; // until the last step ends
  if (!(running = !running)) return;
  form.go.textContent = "Stop";
  await run().catch((error) => (find("status").textContent = error.message));
  [running, form.go.disabled, form.go.textContent] = [false, false, "Generate"];
});
for (const [name, value] of new URLSearchParams(location.search)) if (form[name]) form[name].value = value;
(form.rows.oninput = () => (form.shown.value = form.rows.value))();
