"""A sequence stays on the attention rank that has its history; what is elsewhere is moved there."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.distributed.owners import Owners
from forerun.runtime.cache import CachedSequence
from forerun.runtime.executable import Int32, Rows
from forerun.runtime.rows import join, prompt_rows, tree_rows
from forerun.runtime.tree import Tree

BLOCK, SLOTS = 4, 160
SPARE = np.arange(128, SLOTS, dtype=np.int32)
NONE = np.zeros(0, np.int32)


class Ranks:
    """Ranks with a memory each, in which a record is the text up to its row."""

    def __init__(self, count: int) -> None:
        self.owners = Owners(count, SLOTS, 1, BLOCK)
        self.memory: list[dict[int, tuple[int, ...]]] = [{} for _ in range(count)]

    def run(self, rows: Rows) -> list[tuple[int, ...]]:
        """Each row's text, read from the memory of its rank."""
        ranks, moves = self.owners.of(rows)
        for move in moves:
            given = self.memory[move.source]
            self.memory[move.destination].update({slot: given[slot] for slot in move.slots.tolist()})
        found: list[tuple[int, ...]] = []
        for row in range(len(rows.tokens)):
            own, before = self.memory[ranks[row]], int(rows.positions[row]) - 1
            text = own[self._slot(rows, row, before)] if before >= 0 else ()
            assert text == tuple(own[self._slot(rows, row, each)][-1] for each in range(before + 1))
            found.append((*text, int(rows.tokens[row])))
            own[int(rows.slots[row])] = found[-1]
        return found

    def copy(self, source: Int32, destination: Int32) -> None:
        self.owners.copied(source, destination, with_places=False)
        for own in self.memory:
            had = [own.get(slot) for slot in source.tolist()]
            for slot, text in zip(destination.tolist(), had, strict=True):
                own.pop(slot, None)
                if text is not None:
                    own[slot] = text

    @staticmethod
    def _slot(rows: Rows, row: int, position: int) -> int:
        if position >= rows.bases[row]:
            return int(rows.paths[row, position - rows.bases[row]])
        return int(rows.block_tables[rows.sequences[row], position // BLOCK]) * BLOCK + position % BLOCK


def begun(numbers: list[int]) -> list[CachedSequence]:
    return [CachedSequence(BLOCK, np.arange(8, dtype=np.int32) + 8 * each) for each in numbers]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_row_finds_its_history_on_its_rank(data: st.DataObject) -> None:
    """Prompts and trees of several sequences share steps; trees lie at spare slots of shared blocks, and one path of
    each is committed; blocks are taken over from other sequences."""
    ranks = Ranks(data.draw(st.integers(1, 3)))
    sequences = begun(list(range(data.draw(st.integers(1, 4)))))
    texts: list[tuple[int, ...]] = [() for _ in sequences]
    token = 0
    for _ in range(data.draw(st.integers(1, 6))):
        parts, ends, at = [], [], 0
        for number, sequence in enumerate(sequences):
            count = data.draw(st.integers(0, 5))
            if count == 0 or sequence.length + count > 28:
                continue
            tokens = np.arange(token, token + count, dtype=np.int32)
            token += count
            if data.draw(st.booleans()):
                parts.append(prompt_rows(sequence, tokens, np.zeros(1, np.int32)))
                ends.append((number, None, count))
            else:
                depths = np.arange(count, dtype=np.int32)
                chain = Tree(tokens, depths - 1, depths, np.ones(count))
                slots = SPARE[at : at + count]
                at += count
                parts.append(tree_rows(sequence, chain, slots))
                ends.append((number, slots, data.draw(st.integers(1, count))))
        if not parts:
            continue
        rows = join(parts)
        found, begin = ranks.run(rows), 0
        for (number, slots, count), part in zip(ends, parts, strict=True):
            sequence = sequences[number]
            assert found[begin] == (*texts[number], int(part.tokens[0]))
            texts[number] = found[begin + count - 1]
            if slots is not None:
                home = sequence.home(np.arange(sequence.length, sequence.length + count, dtype=np.int32))
                ranks.copy(slots[:count], home)
            sequence.length += count
            begin += len(part.tokens)
        if data.draw(st.booleans()):
            giver, taker = (data.draw(st.integers(0, len(sequences) - 1)) for _ in range(2))
            shared = min(sequences[giver].length, 28) // BLOCK
            if giver != taker and shared:
                blocks = np.concatenate([sequences[giver].blocks[:shared], sequences[taker].blocks[shared:]])
                sequences[taker] = CachedSequence(BLOCK, blocks, shared * BLOCK)
                texts[taker] = texts[giver][: shared * BLOCK]
                sequences[giver] = CachedSequence(BLOCK, sequences[giver].blocks, shared * BLOCK)
                texts[giver] = texts[giver][: shared * BLOCK]


def test_sequences_that_begin_are_divided_by_their_rows_and_stay() -> None:
    ranks, sequences = Ranks(2), begun([0, 1, 2])
    tokens = [np.arange(count, dtype=np.int32) for count in (5, 2, 3)]
    step = join([prompt_rows(each, text, NONE) for each, text in zip(sequences, tokens, strict=True)])
    assert ranks.owners.of(step)[0].tolist() == [0] * 5 + [1] * 2 + [1] * 3
    for sequence, text in zip(sequences, tokens, strict=True):
        sequence.length = len(text)
    again = join([prompt_rows(sequences[each], tokens[0][:1], NONE) for each in (1, 0)])
    found, moves = ranks.owners.of(again)
    assert found.tolist() == [1, 0]
    assert moves == []


def test_a_history_on_two_ranks_is_put_together() -> None:
    ranks, (first, second) = Ranks(2), begun([0, 1])
    ranks.run(join([prompt_rows(each, np.arange(4, dtype=np.int32), NONE) for each in (first, second)]))
    both = CachedSequence(BLOCK, np.concatenate([first.blocks[:1], second.blocks[:1], first.blocks[2:]]), 8)
    found, moves = ranks.owners.of(prompt_rows(both, np.arange(1, dtype=np.int32), NONE))
    assert found.tolist() == [0]
    assert [(each.source, each.destination, each.slots.tolist()) for each in moves] == [(1, 0, [32, 33, 34, 35])]


def test_one_rank_has_everything() -> None:
    ranks, sequences = Ranks(1), begun([0, 1])
    step = join([prompt_rows(each, np.arange(4, dtype=np.int32), NONE) for each in sequences])
    found, moves = ranks.owners.of(step)
    assert found.tolist() == [0] * 8
    assert moves == []
