
// The page of a server: a conversation, and the tree of every step while the answer comes.

const served = JSON.parse(document.getElementById("data").textContent);

/** Yields the objects of a stream of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  while (true) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const told = part.replace(/^data: /, "");
      if (told !== "[DONE]") yield JSON.parse(told);
    }
  }
}

/** What was told of an answer's steps, as the report's replay has it. */
function replayOf(prompt, text, steps, names, words, waited) {
  const phases = PHASES.map((_, at) => sum(steps.map((step) => step.phases[at])));
  const lengths = d3.rollups(steps, (each) => each.length, (step) => step.committed.length).sort((a, b) => a[0] - b[0]);
  const by = new Map();
  for (const step of steps) {
    for (const row of step.path.slice(1)) {
      const name = names[step.proposers[row]];
      by.set(name, (by.get(name) || 0) + 1);
    }
    by.set(TARGET, (by.get(TARGET) || 0) + 1);
  }
  const tokens = steps.flatMap((step) => step.committed);
  const taken = steps[steps.length - 1].ended;
  return {
    prompt, proposers: names, vocabulary: [...words], steps, token_ids: tokens, text, prefill_seconds: waited, decode_seconds: taken,
    accepted_length: tokens.length / steps.length, tokens_per_second: tokens.length / taken, phases, lengths, tokens_by: [...by], plain: null,
  };
}

function conversation() {
  const turns = [];
  let running = null;

  const talk = h("div", { class: "talk", role: "log", "aria-label": "The conversation" });
  const text = h("textarea", { id: "text", rows: 3, "aria-label": "Your message", placeholder: "Type a message; Enter sends it", onkeydown: (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
  } });
  const option = (name, label, properties) => {
    const input = h("input", { id: name, ...properties });
    return [input, h("label", {}, label, input)];
  };
  const [heat, heatLabel] = option("temperature", "temperature", { type: "number", min: 0, max: 2, step: 0.1, value: 0 });
  const [most, mostLabel] = option("most", "tokens", { type: "number", min: 1, step: 1, value: 256 });
  const [seed, seedLabel] = option("seed", "seed", { type: "number", min: 0, step: 1, placeholder: "any" });
  const [key, keyLabel] = option("key", "key", { type: "password", autocomplete: "off", placeholder: "if needed" });
  const button = h("button", { type: "button", class: "primary", onclick: () => (running ? running.abort() : send()) }, "Send");
  const told = h("p", { class: "muted small", "aria-live": "polite" }, "Greedy at temperature 0; above it, a seed gives the same text again.");
  const stage = h("div", { class: "live" });
  const command = h("pre", { class: "code card", tabindex: 0 });

  async function send() {
    const said = text.value.trim();
    if (!said || running) return;
    text.value = "";
    turns.push({ role: "user", content: said });
    const question = h("div", { class: "turn user" }, said), answer = h("div", { class: "turn assistant" });
    talk.append(question, answer);
    running = new AbortController();
    button.textContent = "Stop";
    try {
      await ask(said, answer, running.signal);
    } catch (error) {
      told.textContent = error.name === "AbortError" ? "Stopped." : error.message;
      told.classList.toggle("failed", error.name !== "AbortError");
    }
    if (answer.textContent) {
      turns.push({ role: "assistant", content: answer.textContent });
    } else { // nothing was said: the message can be edited and sent again
      turns.pop();
      question.remove();
      answer.remove();
      if (!text.value) text.value = said;
    }
    running = null;
    button.textContent = "Send";
    text.focus();
  }

  async function ask(said, answer, signal) {
    const body = { model: served.model, messages: turns, stream: true, watch: true, temperature: Number(heat.value) };
    if (most.value) body.max_completion_tokens = Number(most.value);
    if (seed.value) body.seed = Number(seed.value);
    const headers = { "Content-Type": "application/json", ...(key.value ? { Authorization: `Bearer ${key.value}` } : {}) };
    const sent = performance.now();
    const response = await fetch("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    const steps = [], words = new Map();
    let names = [], used = null, reason = null, waited = 0;
    const tree = h("div", { class: "tree", tabindex: 0, role: "region", "aria-label": "The tree of this step" });
    stage.replaceChildren(h("div", { class: "card" }, tree));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      used = event.seed;
      const [choice] = event.choices;
      answer.append(choice.delta.content || "");
      reason = choice.finish_reason || reason;
      if (!choice.tree) continue;
      if (!steps.length) waited = Math.max(0, (performance.now() - sent) / 1e3 - choice.tree.ended);
      steps.push(choice.tree);
      names = choice.tree.proposer_names;
      choice.tree.words.forEach(([token, word]) => words.set(token, word));
      tree.replaceChildren(treeOf(choice.tree, { proposers: names }, words));
    }
    told.classList.remove("failed");
    told.textContent = (used === null ? "Greedy" : `Seed ${used}`) + (reason === "length" ? "; it reached the limit of tokens." : ".");
    command.textContent = commandOf({ ...body, watch: undefined, stream: undefined, ...(used === null ? {} : { seed: used }) }, key.value);
    if (steps.length) {
      stage.replaceChildren(replaySection({ replay: replayOf(said, answer.textContent, steps, names, words, waited) }));
      drawAll();
    }
  }

  const form = h("div", { class: "card ask" }, text, h("div", { class: "options" }, heatLabel, mostLabel, seedLabel, keyLabel, button), told);
  command.textContent = commandOf({ model: served.model, messages: [{ role: "user", content: "Name three islands." }], temperature: 1, seed: 7 }, "");
  const same = section("same", "The same text again", "A seed gives the same text whatever else is served at the time. Run this, alone or beside any other requests:", command);
  return [talk, form, stage, same];
}

/** A shell's command for a request. */
function commandOf(body, key) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  return `curl ${location.origin}/v1/chat/completions -H 'Content-Type: application/json'${key ? " -H \"Authorization: Bearer $FORERUN_API_KEY\"" : ""} \\\n  -d '${quoted}'`;
}

document.getElementById("main").append(
  h("div", { class: "hero" }, h("h1", {}, served.model), h("p", {}, "Type to the model, and watch the tree of every step: the drafted tokens, and those that the model itself would have taken.")),
  ...conversation(),
);
