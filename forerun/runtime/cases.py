"""Random schedules of a few sequences: chunked prompts, trees, row orders, slots. What `certify` runs."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from forerun.runtime.cache import CachedSequence
from forerun.runtime.executable import Executable, Int32, Rows
from forerun.runtime.rows import prompt_rows, tree_rows, tree_slots
from forerun.runtime.tree import Tree

SEQUENCES = 4
TREE_ROWS = 64
SHORT = 40  # most prompts are no longer than this


@dataclass(frozen=True)
class Limits:
    """How large a case may be, for one executable."""

    rows: int  # of a step
    outputs: int  # of a step
    tree_rows: int  # of all trees of a step
    height: int  # of a tree
    text: int  # the longest prompt
    positions: int  # the most that a sequence takes: a prompt and two trees

    @classmethod
    def of(cls, executable: Executable) -> "Limits":
        height = max(0, min(executable.max_path - 1, executable.max_length // 4 - 1))
        room = executable.max_length - 2 * (height + 1)
        text = max(
            1, min(max(SHORT, executable.block * 5 // 2), 200, room)
        )  # across blocks where they are not too long
        outputs = executable.max_outputs
        tree_rows = min(executable.max_rows, outputs, TREE_ROWS)
        return cls(executable.max_rows, outputs, tree_rows, height, text, text + 2 * (height + 1))


@dataclass(frozen=True)
class Script:
    """What becomes of one sequence: chunks of a text, then a tree of which a path is committed, then another tree."""

    text: int
    chunks: list[int]  # rows a step, in order
    trees: list[Tree]

    @property
    def prompt(self) -> int:
        return sum(self.chunks)


def random_scripts(random: Generator, limits: Limits, texts: int, vocabulary: int) -> list[Script]:
    """One to `SEQUENCES` sequences whose first trees together have as many rows as a step may have, or fewer."""
    count = int(random.integers(1, min(SEQUENCES, limits.tree_rows) + 1))
    total = max(count, log_uniform(random, limits.tree_rows))
    cuts = np.sort(random.choice(np.arange(1, total), count - 1, replace=False)) if count > 1 else np.empty(0, np.int64)
    sizes = np.diff(np.concatenate([[0], cuts, [total]])).tolist()
    scripts: list[Script] = []
    for size in sizes:
        prompt = int(
            random.integers(
                min(4, limits.text), (limits.text if random.random() < 0.25 else min(SHORT, limits.text)) + 1
            )
        )
        chunks: list[int] = []
        while sum(chunks) < prompt:
            chunks.append(log_uniform(random, min(limits.rows, prompt - sum(chunks))))
        trees = [random_tree(random, rows, limits.height, vocabulary) for rows in (size, int(random.integers(1, 4)))]
        scripts.append(Script(int(random.integers(texts)), chunks, trees))
    return scripts


def random_tree(random: Generator, rows: int, height: int, vocabulary: int) -> Tree:
    """From chains to stars. Siblings may hold the same token."""
    reach = int(random.integers(1, rows + 1))  # a row's parent is among the last so many rows
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
        np.zeros(count, np.int32),
    )


def random_prompt_rows(random: Generator, sequence: CachedSequence, tokens: Int32, max_path: int) -> Rows:
    """A chunk's rows. Some find the end of their history through paths, though it lies at home."""
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
    """A tree's rows as the engine lays them out, or with all rows away from home, the root as well."""
    if random.random() < 0.5:
        slots, _ = tree_slots(sequence, tree, spare)
        return tree_rows(sequence, tree, slots)
    slots = spare[: len(tree)].copy()
    rows = tree_rows(sequence, tree, slots)
    below = rows.paths[:, : tree.height]
    paths = np.concatenate([np.full((len(tree), 1), slots[0], np.int32), below], axis=1)
    return replace(rows, bases=np.full(len(tree), sequence.length, np.int32), paths=paths)


def random_outputs(random: Generator, rows: int, most: int) -> Int32:
    """The rows whose logits are asked for: all of them in order, or some in any order, at most `most`."""
    if rows <= most and random.random() < 0.6:
        return np.arange(rows, dtype=np.int32)
    count = max(1, int(random.integers(rows)))
    return random.permutation(rows)[: min(count, most)].astype(np.int32)


def log_uniform(random: Generator, largest: int) -> int:
    """From 1 to `largest`, each octave equally likely."""
    return min(largest, int(np.exp(random.uniform(0, np.log(largest + 1)))))
