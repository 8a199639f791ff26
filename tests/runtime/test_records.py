"""A cache of recurrent states gives every row its parent's record, whatever has given way before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.errors import TooLongError
from forerun.runtime.cache import CachedSequence
from forerun.runtime.executable import Int32, Rows
from forerun.runtime.records import RecordCache
from forerun.runtime.rows import join, prompt_rows, tree_rows, tree_slots
from forerun.runtime.tree import Tree

BLOCK, SLOTS, RECORDS, SPARE = 4, 256, 24, 128


class Texts:
    """Records that hold the text of which they are the state, for a model whose state is its text."""

    def __init__(self, sequences: int) -> None:
        self.cache = RecordCache(SLOTS, BLOCK, RECORDS)
        self.memory: dict[int, tuple[int, ...]] = {}
        self.sequences = [CachedSequence(BLOCK, np.arange(8, dtype=np.int32) + 8 * each) for each in range(sequences)]
        self.texts: list[tuple[int, ...]] = [() for _ in range(sequences)]

    def run(self, rows: Rows) -> list[tuple[int, ...]]:
        """Each row's text, as its parent's record says."""
        placed = self.cache.placed(rows)
        found: list[tuple[int, ...]] = [()] * len(rows.tokens)
        for row in rows.order.tolist():
            parent, own = int(placed.parents[row]), int(placed.records[row])
            assert parent != own
            found[row] = (*(self.memory[parent] if parent >= 0 else ()), int(rows.tokens[row]))
            self.memory[own] = found[row]
        return found

    def restore(self, number: int) -> None:
        """Goes back to the last position whose record is there."""
        sequence = self.sequences[number]
        while sequence.length and not self.cache.has(sequence.last_slot):
            sequence.length -= 1
        self.texts[number] = self.texts[number][: sequence.length]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_find_their_parents(data: st.DataObject) -> None:
    texts = Texts(data.draw(st.integers(1, 3)))
    spare = np.arange(SPARE, SLOTS, dtype=np.int32)
    token = 0
    for _ in range(data.draw(st.integers(1, 8))):
        number = data.draw(st.integers(0, len(texts.sequences) - 1))
        texts.restore(number)
        sequence, text = texts.sequences[number], texts.texts[number]
        if sequence.length > 20:
            continue
        if data.draw(st.booleans()):
            count = data.draw(st.integers(1, 5))
            tokens = np.arange(token, token + count, dtype=np.int32)
            found = texts.run(prompt_rows(sequence, tokens, np.zeros(1, np.int32)))
            assert found == [(*text, *tokens[: at + 1].tolist()) for at in range(count)]
            sequence.length += count
            texts.texts[number] = found[-1]
        else:
            parents = [-1, *(data.draw(st.integers(0, row - 1)) for row in range(1, data.draw(st.integers(1, 7))))]
            depths = [0]
            for parent in parents[1:]:
                depths.append(depths[parent] + 1)
            tokens = np.arange(token, token + len(parents), dtype=np.int32)
            tree = Tree(tokens, np.array(parents, np.int32), np.array(depths, np.int32), np.ones(len(parents)))
            slots, _ = tree_slots(sequence, tree, spare)
            found = texts.run(tree_rows(sequence, tree, slots))
            for row, parent in enumerate(parents):
                assert found[row] == (*(found[parent] if parent >= 0 else text), int(tokens[row]))
            path = [row := data.draw(st.integers(0, len(parents) - 1))]
            while parents[row] >= 0:
                path.insert(0, row := parents[row])
            commit(texts, sequence, slots[path])
            texts.texts[number] = found[path[-1]]
        token += len(tokens)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=2, max_size=4))
def test_prompts_of_one_step_do_not_read_each_others_records(counts: list[int]) -> None:
    texts = Texts(len(counts))
    tokens = [np.arange(count, dtype=np.int32) + 10 * number for number, count in enumerate(counts)]
    parts = [prompt_rows(*each, np.zeros(1, np.int32)) for each in zip(texts.sequences, tokens, strict=True)]
    found = texts.run(join(parts))
    assert found == [tuple(each[: at + 1].tolist()) for each in tokens for at in range(len(each))]


def commit(texts: Texts, sequence: CachedSequence, slots: Int32) -> None:
    home = sequence.home(np.arange(sequence.length, sequence.length + len(slots), dtype=np.int32))
    moved = slots != home
    texts.cache.move(slots[moved], home[moved])
    sequence.length += len(slots)


def test_a_state_that_has_given_way_is_an_error() -> None:
    texts = Texts(2)
    first, second = texts.sequences
    texts.run(prompt_rows(first, np.arange(3, dtype=np.int32), np.zeros(1, np.int32)))
    first.length = 3
    texts.run(prompt_rows(second, np.arange(8, dtype=np.int32), np.zeros(1, np.int32)))
    second.length = 8
    root = Tree(np.array([9], np.int32), np.array([-1], np.int32), np.zeros(1, np.int32), np.ones(1))
    for at in range(SPARE, SPARE + RECORDS):
        texts.run(tree_rows(second, root, np.array([at], np.int32)))
    with pytest.raises(TooLongError, match="not in the cache any more"):
        texts.run(prompt_rows(first, np.array([7], np.int32), np.zeros(1, np.int32)))


def test_a_step_with_too_many_rows_is_an_error() -> None:
    texts = Texts(1)
    (sequence,) = texts.sequences
    count = RECORDS + 1
    star = Tree(
        np.arange(count, dtype=np.int32),
        np.array([-1, *[0] * (count - 1)], np.int32),
        np.array([0, *[1] * (count - 1)], np.int32),
        np.ones(count),
    )
    slots, _ = tree_slots(sequence, star, np.arange(SPARE, SLOTS, dtype=np.int32))
    with pytest.raises(TooLongError, match="more than 24 recurrent states"):
        texts.run(tree_rows(sequence, star, slots))


def test_prompts_of_several_sequences_take_two_records_each_at_most() -> None:
    texts = Texts(3)
    parts = [prompt_rows(each, np.arange(9, dtype=np.int32), np.zeros(1, np.int32)) for each in texts.sequences]
    found = texts.run(join(parts))
    assert found == [tuple(range(at + 1)) for _ in parts for at in range(9)]
