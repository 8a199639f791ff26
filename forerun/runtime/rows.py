"""Pure functions from prompts and trees to the rows of a step; several sequences are joined without padding."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.runtime.cache import CachedSequence
from forerun.runtime.executable import Int32, Rows
from forerun.runtime.tree import Tree


def prompt_rows(sequence: CachedSequence, tokens: Int32, outputs: Int32) -> Rows:
    """Returns the rows of `tokens` at the positions after the committed ones, all at home."""
    count = len(tokens)
    positions = np.arange(sequence.length, sequence.length + count, dtype=np.int32)
    return Rows(
        tokens=tokens,
        positions=positions,
        sequences=np.zeros(count, np.int32),
        slots=sequence.home(positions),
        bases=positions + 1,
        paths=np.zeros((count, 1), np.int32),
        block_tables=sequence.blocks[None],
        outputs=outputs,
        requests=sequence.requests,
    )


def tree_slots(sequence: CachedSequence, tree: Tree, spare: Int32) -> tuple[Int32, int]:
    """Returns the slots [n] of a tree's rows, and how many of `spare` they use.

    The first row of each depth is at its home, so that a commit need not move it; all others are at spare slots.
    """
    if len(tree) == 1:
        return sequence.home(np.array([sequence.length], np.int32)), 0
    _, first = np.unique(tree.depth, return_index=True)
    at_home = np.zeros(len(tree), np.bool_)
    at_home[first] = True
    slots = sequence.home(sequence.length + tree.depth)
    used = len(tree) - len(first)
    slots[~at_home] = spare[:used]
    return slots, used


def tree_rows(sequence: CachedSequence, tree: Tree, slots: Int32) -> Rows:
    """Returns a tree's rows, all logits requested. If the root is at home, paths begin below it, otherwise with it."""
    count, first = len(tree), int(slots[0] != sequence.home(np.array([sequence.length]))[0])
    paths = np.zeros((count, max(1, tree.height + first)), np.int32)
    if first:
        paths[:, 0] = slots[0]
    if tree.height:
        paths[:, first:] = slots[tree.ancestors]
        paths[:, first:][np.arange(1, tree.height + 1) > tree.depth[:, None]] = 0
    return Rows(
        tokens=tree.token,
        positions=sequence.length + tree.depth,
        sequences=np.zeros(count, np.int32),
        slots=slots,
        bases=np.full(count, sequence.length + 1 - first, np.int32),
        paths=paths,
        block_tables=sequence.blocks[None],
        outputs=np.arange(count, dtype=np.int32),
        requests=sequence.requests,
    )


def root_rows(sequences: Sequence[CachedSequence], tokens: Sequence[int]) -> Rows:
    """Returns the next row of each sequence, all at home: the `tree_rows` of trees of one row, joined."""
    count = len(sequences)
    positions = np.array([sequence.length for sequence in sequences], np.int32)
    numbers = np.arange(count, dtype=np.int32)
    return Rows(
        tokens=np.array(tokens, np.int32),
        positions=positions,
        sequences=numbers,
        slots=np.array([sequence.next_slot for sequence in sequences], np.int32),
        bases=positions + 1,
        paths=np.zeros((count, 1), np.int32),
        block_tables=_stack([sequence.blocks[None] for sequence in sequences]),
        outputs=numbers,
        requests=np.array([sequence.request for sequence in sequences], np.int32),
    )


def replayed_rows(sequence: CachedSequence, tokens: Int32, slots: Int32) -> Rows:
    """Returns rows that repeat the last committed tokens [n] at other slots [n]; what they wrote stays.

    All logits are requested. n may be at most the longest path.
    """
    count = len(tokens)
    start = sequence.length - count
    places = np.arange(count, dtype=np.int32)
    return Rows(
        tokens=tokens,
        positions=start + places,
        sequences=np.zeros(count, np.int32),
        slots=slots,
        bases=np.full(count, start, np.int32),
        paths=np.where(places <= places[:, None], slots, 0).astype(np.int32),
        block_tables=sequence.blocks[None],
        outputs=places,
        requests=sequence.requests,
    )


def same_position(sequence: CachedSequence, token: int, slots: Int32) -> Rows:
    """Returns rows of the sequence's last committed token that do not see each other; no logits are requested."""
    count = len(slots)
    position = sequence.length - 1
    return Rows(
        tokens=np.full(count, token, np.int32),
        positions=np.full(count, position, np.int32),
        sequences=np.zeros(count, np.int32),
        slots=slots,
        bases=np.full(count, position, np.int32),
        paths=slots[:, None].copy(),
        block_tables=sequence.blocks[None],
        outputs=np.zeros(0, np.int32),
        requests=sequence.requests,
    )


def pick(rows: Rows, chosen: NDArray[np.intp], outputs: bool) -> Rows:
    """Returns only the chosen rows; all of their logits are requested, or none."""
    return _at(rows, chosen, np.arange(len(chosen) if outputs else 0, dtype=np.int32))


def taken(rows: Rows, chosen: NDArray[np.integer[Any]]) -> tuple[Rows, NDArray[np.intp]]:
    """Returns only the chosen rows, with their places and those of their logits that were requested, and the numbers of
    these among the outputs."""
    place = np.full(len(rows.tokens), -1, np.int32)
    place[chosen] = np.arange(len(chosen), dtype=np.int32)
    wanted = np.flatnonzero(place[rows.outputs] >= 0)
    places = None if rows.places is None else (rows.parents[chosen], rows.records[chosen])
    return replace(_at(rows, chosen, place[rows.outputs[wanted]]), places=places), wanted


def join(parts: Sequence[Rows]) -> Rows:
    """Returns the rows of several sequences, in this order, as those of one step."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0] + [len(part.tokens) for part in parts])
    tables = np.cumsum([0] + [len(part.block_tables) for part in parts])
    return Rows(
        tokens=np.concatenate([part.tokens for part in parts]),
        positions=np.concatenate([part.positions for part in parts]),
        sequences=np.concatenate(
            [part.sequences + np.int32(first) for part, first in zip(parts, tables[:-1], strict=True)]
        ),
        slots=np.concatenate([part.slots for part in parts]),
        bases=np.concatenate([part.bases for part in parts]),
        paths=_stack([part.paths for part in parts]),
        block_tables=_stack([part.block_tables for part in parts]),
        outputs=np.concatenate(
            [part.outputs + np.int32(first) for part, first in zip(parts, starts[:-1], strict=True)]
        ),
        requests=np.concatenate([part.requests for part in parts]),
    )


def reorder(rows: Rows, order: NDArray[np.intp]) -> Rows:
    """Returns the same rows in another order; `outputs` still names the same rows, in the same order."""
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return _at(rows, order, place[rows.outputs])


def _at(rows: Rows, chosen: NDArray[np.integer[Any]], outputs: Int32) -> Rows:
    return Rows(
        tokens=rows.tokens[chosen],
        positions=rows.positions[chosen],
        sequences=rows.sequences[chosen],
        slots=rows.slots[chosen],
        bases=rows.bases[chosen],
        paths=rows.paths[chosen],
        block_tables=rows.block_tables,
        outputs=outputs,
        requests=rows.requests,
    )


def _stack(tables: Sequence[Int32]) -> Int32:
    """Stacks tables of different widths, padded with 0."""
    stacked = np.zeros((sum(len(table) for table in tables), max(table.shape[1] for table in tables)), np.int32)
    start = 0
    for table in tables:
        stacked[start : start + len(table), : table.shape[1]] = table
        start += len(table)
    return stacked
