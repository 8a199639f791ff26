// Code with its syntax coloured: the IR, loop nests, and the sources of kernels.

const IR = [
  ["remark", /\/\/[^\n]*/y],
  ["loc", /loc\([^)]*\)/y],
  ["text", /"[^"]*"/y],
  ["symbol", /@(?:"[^"]*"|[\w.$-]+)/y],
  ["value", /%[\w.$-]+/y],
  ["type", /!spec\.\w+<[^>]*>/y],
  ["op", /\b(?:spec|builtin)\.\w+/y],
  ["digits", /-?\b\d+(?:\.\d+)?(?:e[+-]?\d+)?\b/y],
];
const WORDS = /\b(?:for|if|elif|else|def|return|import|from|with|as|in|while|pass|and|or|not|None|True|False|lambda|int|float|void|const|static|struct|where|rows|products|column|row|attention|recurrence|tile)\b/y;
const SOURCE = [
  ["remark", /#[^\n]*|\/\/[^\n]*/y],
  ["text", /"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'/y],
  ["word", WORDS],
  ["digits", /\b\d+(?:\.\d+)?(?:e[+-]?\d+)?\b/y],
];

/** The parts of a line, each with its kind; null for what has none. */
function lexed(line, rules) {
  const parts = [];
  let plain = "";
  for (let at = 0; at < line.length;) {
    let found = null;
    for (const [kind, rule] of rules) {
      rule.lastIndex = at;
      const match = rule.exec(line);
      if (match) { found = [kind, match[0]]; break; }
    }
    if (!found) {
      const word = /^\w+/.exec(line.slice(at, at + 64));
      const text = word ? word[0] : line[at];
      plain += text;
      at += text.length;
      continue;
    }
    if (plain) parts.push([null, plain]);
    plain = "";
    parts.push(found);
    at += found[1].length;
  }
  if (plain) parts.push([null, plain]);
  return parts;
}

/** A block of code; lines for which `isNew` holds are marked. */
function code(text, rules, label, isNew = () => false) {
  const lines = text.replace(/\n$/, "").split("\n").map((line) => {
    const spans = lexed(line, rules).map(([kind, part]) => (kind ? h("span", { class: kind }, part) : part));
    return h("span", isNew(line) ? { class: "new" } : {}, spans.length ? spans : " ");
  });
  return h("pre", { class: "code", tabindex: 0, role: "region", "aria-label": label }, lines);
}

/** A source of which the page may hold only the beginning. */
function source(piece, dump) {
  const whole = piece.text.length >= piece.size;
  const more = `The first ${piece.text.length.toLocaleString("en-US")} of ${piece.size.toLocaleString("en-US")} characters. The whole: `;
  return [code(piece.text, SOURCE, piece.name), whole ? null : h("p", { class: "cut" }, more, h("code", {}, dump))]
    .filter((each) => each);
}

/** Tells which lines of a module were not there before, whatever its values are numbered. */
function newLines(before) {
  const shape = (line) => line.replace(/ loc\(.*\)$/, "").replace(/%[\w.$-]+/g, "%").trim();
  const known = new Set((before || "").split("\n").map(shape));
  return (line) => before !== null && !line.trim().startsWith("//") && !known.has(shape(line));
}
