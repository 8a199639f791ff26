// Speculative decoding from a bundle in a browser: the loop of examples/run_onnx.py, on onnxruntime-web.
// A step evaluates N rows, each one token of a tree; the first row, the root, is the last token of the text. Every row
// sees the C cached positions, its ancestors and itself, so each row's logits are those of the text that ends with it.
// The tokens that the model confirms are committed: the rows' records join the cache.
import * as ort from "onnxruntime-web";

const range = (count, start = 0) => Array.from({ length: count }, (_, index) => start + index);
const int32 = (values) => new ort.Tensor("int32", Int32Array.from(values), [values.length]);

/** The step of a bundle, with the cache of one text. */
export class Model {
  /** Opens the bundle in a folder: a URL that ends with a slash. */
  static async open(folder) {
    const response = await fetch(new URL("bundle.json", folder));
    if (!response.ok) throw new Error(`There is no bundle at ${folder}: export one, or give the address of another.`);
    const manifest = await response.json();
    const { content: { graphs, weights, state_outputs }, limits } = manifest;
    const externalData = [{ path: weights, data: new URL(weights, folder).href }];
    const session = await ort.InferenceSession.create(new URL(graphs.step, folder).href, { externalData });
    const states = Object.entries(manifest.states).map(([name, { shape }]) => {
      const size = shape.reduce((product, dim) => product * dim, 1); // numbers in a record
      return { name, output: state_outputs[name], shape, size, records: new Float32Array(limits.max_length * size) };
    });
    return Object.assign(new Model(), { manifest, limits, session, states, length: 0 }); // length: C
  }

  /** Evaluates a tree: row r follows row parents[r], -1 for the root. Candidates are those of the rows `outputs`. */
  step(tokens, parents, outputs) {
    const [length, width] = [this.length, this.length + tokens.length];
    const [visible, positions] = [new Uint8Array(tokens.length * width), []];
    parents.forEach((parent, row) => { // parents come before their children
      if (parent < 0) visible.fill(1, row * width, row * width + length);
      else visible.copyWithin(row * width, parent * width, (parent + 1) * width);
      visible[row * width + length + row] = 1;
      positions.push(parent < 0 ? length : positions[parent] + 1);
    });
    const given = { tokens: int32(tokens), positions: int32(positions), outputs: int32(outputs) };
    given.visible = new ort.Tensor("bool", visible, [tokens.length, width]);
    given.cached_positions = int32(range(length));
    for (const { name, shape, size, records } of this.states)
      given[name] = new ort.Tensor("float32", records.subarray(0, length * size), [length, ...shape]);
    const feeds = Object.fromEntries(this.session.inputNames.map((name) => [name, given[name]]));
    return this.session.run(feeds, ["candidates", ...this.states.map((state) => state.output)]);
  }

  /** Makes the records of a path's rows those of the next positions. */
  commit(results, path) {
    for (const { output, size, records } of this.states)
      path.forEach((row, index) =>
        records.set(results[output].data.subarray(row * size, (row + 1) * size), (this.length + index) * size));
    this.length += path.length;
  }

  /** Commits the tokens of a prompt: a tree without branches, a chunk of rows at a time. */
  async prefill(tokens) {
    for (let start = 0; start < tokens.length; start += this.limits.max_rows) {
      const part = tokens.slice(start, start + this.limits.max_rows);
      this.commit(await this.step(part, range(part.length, -1), [part.length - 1]), range(part.length));
    }
  }
}

/** Returns the child of a row that has a token, -1 if there is none. */
const childOf = (row, token, tree) =>
  tree.parents.findIndex((parent, child) => parent === row && tree.tokens[child] === token);

/** Returns a tree, {tokens, parents}: what followed earlier occurrences of the text's last tokens.
 *  The occurrences of the longest match come first; continuations that begin alike share rows. */
export function draft(text, rows, longest = 4, places = 8) {
  const tree = { tokens: [text.at(-1)], parents: [-1] };
  for (let size = Math.min(longest, text.length - 1); size > 0; size--) {
    const matches = (end) => range(size, 1).every((back) => text[end - back] === text.at(-back));
    const ends = range(text.length - size, size).filter(matches).reverse();
    for (const end of ends.slice(0, places)) {
      let row = 0;
      for (const token of text.slice(end, end + rows)) {
        const child = childOf(row, token, tree);
        if (child < 0 && tree.tokens.length === rows) return tree;
        if (child < 0) tree.parents.push(row);
        row = child < 0 ? tree.tokens.push(token) - 1 : child;
      }
    }
    if (ends.length) break;
  }
  return tree;
}

/** Yields the steps of a greedy text: the tree, the path in it, the tokens it adds. One row is plain decoding. */
export async function* generate(model, prompt, newTokens, rows) {
  const { max_outputs, max_length, candidates } = model.limits;
  const [text, ends] = [[...prompt], model.manifest.model.eos_token_ids];
  model.length = 0;
  await model.prefill(prompt.slice(0, -1));
  for (let left = newTokens; left > 0; ) {
    const tree = draft(text, Math.min(rows, max_outputs, max_length - model.length));
    const results = await model.step(tree.tokens, tree.parents, range(tree.tokens.length));
    const chosen = tree.tokens.map((_, row) => results.candidates.data[row * candidates]);
    const path = []; // each row on it has the token that the model chose at the row before
    for (let row = 0; row >= 0; row = childOf(row, chosen[row], tree)) path.push(row);
    model.commit(results, path);
    const more = path.map((row) => chosen[row]); // the last one is no row of the tree
    const end = more.findIndex((token) => ends.includes(token)) + 1;
    const added = more.slice(0, Math.min(left, end || left));
    text.push(...added);
    left = end ? 0 : left - added.length;
    yield { ...tree, path: path.slice(0, added.length + 1), added }; // the text may end before the path
  }
}
