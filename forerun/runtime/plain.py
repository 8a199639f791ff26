"""Plain decoding, one row a step: what every schedule is held against."""

from dataclasses import dataclass, field

import numpy as np

from forerun.runtime.cache import BlockCache, CachedSequence
from forerun.runtime.executable import Executable, Float32, Int32, Rows
from forerun.runtime.rows import prompt_rows

FIRST_OUTPUT = np.zeros(1, np.int32)


@dataclass(eq=False)
class _Branch:
    """A sequence that shares a text's beginning and then goes its own way."""

    sequence: CachedSequence
    text: int = 0
    start: int = 0  # tokens of the text that it begins with
    tail: list[int] = field(default_factory=list)  # the tokens after them that are in the cache
    known: dict[tuple[int, ...], Float32] = field(default_factory=dict)  # tail -> the logits [V] of its last token


class PlainDecoder:
    """Decodes a few texts a row at a time once, and branches from any of their beginnings."""

    def __init__(self, executable: Executable, texts: list[Int32], branches: int, longest: int) -> None:
        """`longest`: the most positions that a branch may take."""
        self.executable = executable
        block = executable.block
        sizes = [-(-len(text) // block) for text in texts] + [-(-longest // block)] * branches
        self.cache = BlockCache(sum(sizes) + 1, block, spare=1)
        self.state = executable.new_state(sum(sizes) + 1)
        self._texts = [self._sequence(len(text)) for text in texts]
        self._branches = [_Branch(self._sequence(longest)) for _ in range(branches)]
        self._text_logits = [
            np.stack([self._feed(sequence, token) for token in text.tolist()])
            for sequence, text in zip(self._texts, texts, strict=True)
        ]

    def text_logits(self, text: int, position: int) -> Float32:
        """[V] at one position of a text."""
        return self._text_logits[text][position]

    def begin(self, branch: int, text: int, start: int) -> None:
        """Let `branch` begin with the first `start` tokens of `text`."""
        sequence = self._branches[branch].sequence
        positions = np.arange(start, dtype=np.int32)
        self.executable.copy_slots(self.state, self._texts[text].home(positions), sequence.home(positions))
        self._branches[branch] = _Branch(sequence, text, start)

    def logits(self, branch: int, tail: tuple[int, ...]) -> Float32:
        """[V] of the last token of `tail`, which follows the branch's beginning."""
        known = self._branches[branch].known
        if tail not in known:
            self._rewind(branch, tail)
        return known[tail]

    def last_row(self, branch: int, tail: tuple[int, ...]) -> Rows:
        """The one-row step that decodes the last token of `tail`, all before it being in the cache."""
        self._rewind(branch, tail[:-1])
        return self._row(self._branches[branch].sequence, tail[-1])

    def text_row(self, text: int, position: int, token: int) -> Rows:
        """The one-row step that decodes a text's token."""
        self._texts[text].length = position
        return self._row(self._texts[text], token)

    def _rewind(self, branch_index: int, tail: tuple[int, ...]) -> None:
        """Bring the branch's cache to `tail`: go back to what is shared, then decode the rest."""
        branch = self._branches[branch_index]
        shared = next((i for i, (a, b) in enumerate(zip(branch.tail, tail, strict=False)) if a != b), None)
        if shared is None:
            shared = min(len(branch.tail), len(tail))
        del branch.tail[shared:]
        for token in tail[shared:]:
            branch.sequence.length = branch.start + len(branch.tail)
            branch.tail.append(token)
            branch.known[tuple(branch.tail)] = self._feed(branch.sequence, token)
        branch.sequence.length = branch.start + len(branch.tail)

    def _feed(self, sequence: CachedSequence, token: int) -> Float32:
        result = self.executable.run(self.state, self._row(sequence, token))
        sequence.length += 1
        return np.array(result.logits[0])

    def _row(self, sequence: CachedSequence, token: int) -> Rows:
        return prompt_rows(sequence, np.array([token], np.int32), FIRST_OUTPUT)

    def _sequence(self, positions: int) -> CachedSequence:
        sequence = CachedSequence(self.executable.block, np.empty(0, np.int32))
        self.cache.reserve(sequence, positions)
        return sequence
