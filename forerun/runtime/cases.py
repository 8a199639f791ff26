"""The random schedules that `certify` runs: a few sequences with chunked prompts, trees, row orders and slots."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from forerun.runtime.cache import CachedSequence
from forerun.runtime.executable import Executable, Inputs, Int32, Rows
from forerun.runtime.rows import prompt_rows, tree_rows, tree_slots
from forerun.runtime.tree import Tree
from forerun.signature import ENCODE

SEQUENCES = 4
TREE_ROWS = 64
SHORT = 40  # most prompts are no longer than this
MIDDLE = 200  # nearly all others are no longer than this
FULL_EVERY, FULL_AT = 32, 7  # cases 7, 39, 71, ... have a chunk of the largest size
END_AT = 19  # the case that reaches the last position of a sequence
FURTHEST = 4096  # or this position, as plain decoding takes one step per position
NAMED = 9  # the most elements of a named axis of a model's inputs besides the prompt
LONG_TEXT = 0  # the text that long prompts are cut from


@dataclass(frozen=True)
class Limits:
    """The size limits of a case for one executable."""

    rows: int  # of a step
    outputs: int  # of a step
    tree_rows: int  # of all trees of a step
    height: int  # of a tree
    trees: int  # of a sequence, one after another
    text: int  # the longest prompt, a few excepted
    full: int  # the longest prompt, one excepted: more than the rows of a step if `max_length` allows it
    end: int  # the positions of the longest sequence

    @classmethod
    def of(cls, executable: Executable) -> "Limits":
        height = max(0, min(executable.max_path - 1, executable.max_length // 4 - 1))
        trees = min(2, executable.max_length - 1)
        room = executable.max_length - trees * (height + 1)
        text = min(max(SHORT, executable.block * 5 // 2), MIDDLE, room)  # across blocks unless they are too long
        full = max(text, min(executable.max_rows + 2 * executable.block + 8, room, FURTHEST))
        outputs = executable.max_outputs
        tree_rows = min(executable.max_rows, outputs, TREE_ROWS)
        end = max(full, min(executable.max_length, FURTHEST))
        return cls(executable.max_rows, outputs, tree_rows, height, trees, text, full, end)

    def texts(self, count: int) -> list[int]:
        """Returns the lengths of the texts that prompts are cut from."""
        return [self.end if text == LONG_TEXT else self.text for text in range(count)]

    def blocks(self, block: int) -> int:
        """Returns enough blocks for the sequences of any one case."""
        longest = self.full + self.trees * (self.height + 1)
        return max(-(-self.end // block), SEQUENCES * -(-longest // block))


@dataclass(frozen=True)
class Script:
    """The schedule of one sequence: chunks of a text, then a tree of which a path is committed, then another tree."""

    text: int
    chunks: list[int]  # rows per step, in order
    trees: list[Tree]

    @property
    def prompt(self) -> int:
        return sum(self.chunks)

    @property
    def positions(self) -> int:
        """The most positions that the sequence takes."""
        return self.prompt + sum(tree.height + 1 for tree in self.trees)


def random_scripts(random: Generator, limits: Limits, case: int, texts: int, vocabulary: int) -> list[Script]:
    """Returns the scripts of a case's sequences, 1 to `SEQUENCES` of them."""
    if case == END_AT:
        return [_to_the_end(random, limits, vocabulary)]
    if case % FULL_EVERY == FULL_AT:
        return _full_chunks(random, limits, vocabulary)
    return _ordinary(random, limits, texts, vocabulary)


def _ordinary(random: Generator, limits: Limits, texts: int, vocabulary: int) -> list[Script]:
    """Returns scripts whose first trees together fit in one step."""
    count = int(random.integers(1, min(SEQUENCES, limits.tree_rows) + 1))
    total = max(count, log_uniform(random, limits.tree_rows))
    cuts = np.sort(random.choice(np.arange(1, total), count - 1, replace=False)) if count > 1 else np.empty(0, np.int64)
    sizes = np.diff(np.concatenate([[0], cuts, [total]])).tolist()
    scripts: list[Script] = []
    for size in sizes:
        text, longest = int(random.integers(texts)), min(SHORT, limits.text)
        kind = random.random()
        if kind < 0.04:
            text, longest = LONG_TEXT, limits.full
        elif kind < 0.25:
            longest = limits.text
        prompt = int(random.integers(min(4, limits.text), longest + 1))
        scripts.append(
            Script(text, random_chunks(random, prompt, limits.rows), _trees(random, limits, size, vocabulary))
        )
    return scripts


def _full_chunks(random: Generator, limits: Limits, vocabulary: int) -> list[Script]:
    """Returns one long prompt twice: with a chunk of the largest size at a random place, and in other chunks."""
    chunk = min(limits.rows, limits.full)
    before = int(random.integers(limits.full - chunk + 1))
    rest = limits.full - chunk - before
    full = [*random_chunks(random, before, limits.rows), chunk, *random_chunks(random, rest, limits.rows)]
    size = max(1, limits.tree_rows // 4)
    chunkings = [full] if limits.tree_rows < 2 else [full, random_chunks(random, limits.full, limits.rows)]
    return [Script(LONG_TEXT, chunks, _trees(random, limits, size, vocabulary)) for chunks in chunkings]


def _to_the_end(random: Generator, limits: Limits, vocabulary: int) -> Script:
    """Returns a script whose last tree's deepest row is at the last position."""
    sizes = [1, min(8, limits.tree_rows)][: limits.trees]  # all of the first tree is committed
    trees = [random_tree(random, size, limits.height, vocabulary) for size in sizes]
    prompt = limits.end - sum(tree.height + 1 for tree in trees)
    return Script(LONG_TEXT, random_chunks(random, prompt, limits.rows), trees)


def _trees(random: Generator, limits: Limits, rows: int, vocabulary: int) -> list[Tree]:
    """Returns a tree of `rows` rows and a small one."""
    sizes = [rows, int(random.integers(1, 4))][: limits.trees]
    return [random_tree(random, size, limits.height, vocabulary) for size in sizes]


def random_chunks(random: Generator, rows: int, most: int) -> list[int]:
    """Returns sizes that add up to `rows`, none above `most`."""
    chunks: list[int] = []
    while rows > 0:
        chunks.append(log_uniform(random, min(most, rows)))
        rows -= chunks[-1]
    return chunks


def random_tree(random: Generator, rows: int, height: int, vocabulary: int) -> Tree:
    """Returns a tree of any shape from chain to star. Siblings may hold the same token."""
    reach = int(random.integers(1, rows + 1))  # a row's parent is one of the last `reach` rows
    parents, depths = [-1], [0]
    for row in range(1, rows):
        parent = int(random.integers(max(0, row - reach), row))
        parent = parent if depths[parent] < height else 0
        if height == 0:
            break
        parents.append(parent)
        depths.append(depths[parent] + 1)
    count = len(parents)
    return Tree(
        random.integers(0, vocabulary, count, dtype=np.int32),
        np.array(parents, np.int32),
        np.array(depths, np.int32),
        np.ones(count),
    )


def random_prompt_rows(random: Generator, sequence: CachedSequence, tokens: Int32, max_path: int) -> Rows:
    """Returns a chunk's rows. Some find the end of their history through paths although it is at home."""
    count = len(tokens)
    rows = prompt_rows(sequence, tokens, np.arange(count, dtype=np.int32))
    if random.random() < 0.5:
        return rows
    lengths = np.minimum(random.integers(0, min(max_path, 8) + 1, count), rows.positions + 1).astype(np.int32)
    width = max(1, int(lengths.max()))
    offsets = np.arange(width, dtype=np.int32)
    bases = rows.positions + 1 - lengths
    positions = np.minimum(bases[:, None] + offsets, rows.positions[:, None])
    paths = np.where(offsets < lengths[:, None], sequence.home(positions), 0).astype(np.int32)
    return replace(rows, bases=bases, paths=paths)


def random_tree_rows(random: Generator, sequence: CachedSequence, tree: Tree, spare: Int32) -> Rows:
    """Returns a tree's rows as the engine lays them out, or with all rows, the root included, away from home."""
    slots, _ = tree_slots(sequence, tree, spare)
    return tree_rows(sequence, tree, slots if random.random() < 0.5 else spare[: len(tree)].copy())


def random_inputs(random: Generator, executable: Executable) -> Inputs:
    """Returns a model's inputs besides the prompt: integers are tokens, and named axes have a few elements."""
    entry = executable.entries.get(ENCODE)
    found: dict[str, NDArray[Any]] = {}
    sizes: dict[str, int] = {}
    for each in () if entry is None else entry.arguments:
        if each.name == "requests":
            continue
        shape = [
            dim if isinstance(dim, int) else sizes.setdefault(dim, int(random.integers(1, NAMED + 1)))
            for dim in each.dims
        ]
        whole = each.dtype != "f32"
        found[each.name] = (
            random.integers(0, executable.vocabulary, shape, dtype=np.int32)
            if whole
            else random.standard_normal(shape, dtype=np.float32)
        )
    return found


def random_outputs(random: Generator, rows: int, most: int) -> Int32:
    """Returns the rows whose logits are requested: all in order, or some in any order, at most `most`."""
    if rows <= most and random.random() < 0.6:
        return np.arange(rows, dtype=np.int32)
    count = max(1, int(random.integers(rows)))
    return random.permutation(rows)[: min(count, most)].astype(np.int32)


def log_uniform(random: Generator, largest: int) -> int:
    """Returns a number from 1 to `largest`; all octaves are equally likely."""
    return min(largest, int(np.exp(random.uniform(0, np.log(largest + 1)))))
