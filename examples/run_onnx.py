"""Speculative decoding from a bundle with numpy, onnxruntime and tokenizers alone: the loop to port.

    forerun export demo --format onnx --out smollm2 && python examples/run_onnx.py smollm2 "Once upon a time"

docs/bundle.md describes the files. A step evaluates N rows, each one token of a tree; the first row, the root, is the
last token of the text. Every row sees the C cached positions, its ancestors and itself, so each row's logits are those
of the text that ends with it. The tokens that the model confirms are committed: the rows' records join the cache.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class Model:
    """The step of a bundle, with the cache of one text."""

    def __init__(self, folder: Path) -> None:
        self.manifest = json.loads((folder / "bundle.json").read_text())
        content, limits = self.manifest["content"], self.manifest["limits"]
        self.session = onnxruntime.InferenceSession(folder / content["graphs"]["step"])
        self.max_rows, self.max_outputs, self.max_length = (
            limits[name] for name in ("max_rows", "max_outputs", "max_length")
        )
        self.inputs = [each.name for each in self.session.get_inputs()]
        self.outputs = [each.name for each in self.session.get_outputs()]
        self.new = content["state_outputs"]  # the output that holds the rows' records of each state
        self.cache = {
            name: np.zeros((self.max_length, *state["shape"]), np.float32)
            for name, state in self.manifest["states"].items()
        }
        self.length = 0  # C, the committed positions

    def step(self, tokens: list[int], parents: list[int], outputs: list[int]) -> dict[str, np.ndarray]:
        """Evaluates a tree: row r follows row parents[r], -1 for the root. Logits are of the rows `outputs`."""
        count, length = len(tokens), self.length
        visible = np.zeros((count, length + count), np.bool_)
        visible[:, :length] = True
        depth = np.zeros(count, np.int32)
        for row, parent in enumerate(parents):  # parents come before their children
            if parent >= 0:
                visible[row, length:] = visible[parent, length:]
                depth[row] = depth[parent] + 1
            visible[row, length + row] = True
        given = {
            "tokens": np.array(tokens, np.int32),
            "positions": length + depth,
            "visible": visible,
            "cached_positions": np.arange(length, dtype=np.int32),
            "outputs": np.array(outputs, np.int32),
        }
        given |= {name: records[:length] for name, records in self.cache.items()}
        found = self.session.run(self.outputs, {name: given[name] for name in self.inputs})
        return dict(zip(self.outputs, found, strict=True))

    def commit(self, results: dict[str, np.ndarray], path: list[int]) -> None:
        """Makes the records of a path's rows those of the next positions."""
        for name, records in self.cache.items():
            records[self.length : self.length + len(path)] = results[self.new[name]][path]
        self.length += len(path)

    def prefill(self, tokens: list[int]) -> None:
        """Commits the tokens of a prompt: a tree without branches, a chunk of rows at a time."""
        for start in range(0, len(tokens), self.max_rows):
            part = tokens[start : start + self.max_rows]
            results = self.step(part, list(range(-1, len(part) - 1)), [len(part) - 1])
            self.commit(results, list(range(len(part))))


def draft(text: list[int], rows: int, longest: int = 4, places: int = 8) -> tuple[list[int], list[int]]:
    """Returns the tokens and the parents of a tree: what followed earlier occurrences of the text's last tokens.

    The occurrences of the longest match come first; continuations that begin alike share rows.
    """
    tokens, parents, children = [text[-1]], [-1], {}
    for size in range(min(longest, len(text) - 1), 0, -1):
        tail = text[-size:]
        ends = [end for end in range(len(text) - 1, size - 1, -1) if text[end - size : end] == tail]
        for end in ends[:places]:
            row = 0
            for token in text[end : end + rows]:
                if (row, token) not in children:
                    if len(tokens) == rows:
                        return tokens, parents
                    children[row, token] = len(tokens)
                    tokens.append(token)
                    parents.append(row)
                row = children[row, token]
        if ends:
            break
    return tokens, parents


def accepted(tokens: list[int], parents: list[int], chosen: list[int]) -> tuple[list[int], list[int]]:
    """Returns the path that the model confirms, and the tokens after it; `chosen` are the rows' likeliest tokens."""
    path, text = [0], [chosen[0]]
    while True:
        row = path[-1]
        follows = [child for child, parent in enumerate(parents) if parent == row and tokens[child] == chosen[row]]
        if not follows:
            return path, text
        path.append(follows[0])
        text.append(chosen[follows[0]])


def generate(model: Model, prompt: list[int], new_tokens: int, rows: int) -> tuple[list[int], int]:
    """Returns the new tokens of a greedy text, and the number of steps that they took. One row is plain decoding."""
    text, steps = list(prompt), 0
    ends = set(model.manifest["model"]["eos_token_ids"])
    model.prefill(prompt[:-1])
    while len(text) < len(prompt) + new_tokens:
        room = min(rows, model.max_outputs, model.max_length - model.length)
        tokens, parents = draft(text, room)
        results = model.step(tokens, parents, list(range(len(tokens))))
        path, more = accepted(tokens, parents, results["candidates"][:, 0].tolist())
        model.commit(results, path)
        steps += 1
        for token in more[: len(prompt) + new_tokens - len(text)]:
            text.append(token)
            if token in ends:
                return text[len(prompt) :], steps
    return text[len(prompt) :], steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8, help="of a tree; 1 is plain decoding")
    given = parser.parse_args()
    if not (given.bundle / "step.onnx").is_file():
        sys.exit(f"{given.bundle} is no bundle of format onnx: give the folder that forerun export wrote.")
    tokenizer = Tokenizer.from_file(str(given.bundle / "tokenizer" / "tokenizer.json"))
    model, prompt = Model(given.bundle), tokenizer.encode(given.prompt).ids
    if not prompt or len(prompt) + given.max_new_tokens > model.max_length:
        sys.exit(f"The prompt and the new tokens must be 1 to {model.max_length} positions; shorten one of them.")
    tokens, steps = generate(model, prompt, given.max_new_tokens, given.rows)
    print(tokenizer.decode(tokens))
    print(f"{len(tokens)} tokens in {steps} steps: {len(tokens) / steps:.2f} tokens a step", file=sys.stderr)


if __name__ == "__main__":
    main()
