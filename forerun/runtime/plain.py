"""Plain decoding, one row per step: the reference for every schedule."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from forerun.runtime.blocks import BlockCache
from forerun.runtime.cache import CachedSequence
from forerun.runtime.engine import encode
from forerun.runtime.executable import WHOLE, Executable, Float32, Inputs, Int32, Rows
from forerun.runtime.rows import prompt_rows

FIRST_OUTPUT = np.zeros(1, np.int32)


def digest(logits: Float32) -> bytes:
    """Returns a hash of all bits of logits [V], which would be too many to keep for every row."""
    return hashlib.sha256(np.ascontiguousarray(logits).data).digest()


@dataclass(eq=False)
class _Text:
    tokens: Int32
    sequence: CachedSequence
    known: list[bytes] = field(default_factory=list[bytes])  # digest of each position's logits, as far as decoded


@dataclass(eq=False)
class _Branch:
    """A sequence that shares a text's beginning and then diverges."""

    sequence: CachedSequence  # begins with blocks of the text
    start: int  # tokens of the text that it begins with
    tail: list[int] = field(default_factory=list[int])  # the tokens after them that are in the cache
    known: dict[tuple[int, ...], bytes] = field(default_factory=dict[tuple[int, ...], bytes])  # tail -> digest


class PlainDecoder:
    """Decodes a few texts one row at a time, each as far as needed, and branches from any prefix of them.

    The result for a row is the digest of its logits [V].
    """

    def __init__(
        self, executable: Executable, texts: list[Int32], inputs: Sequence[Inputs], branches: int, longest: int
    ) -> None:
        """`inputs`: the model's inputs besides each text.

        `longest`: the most positions of a branch after the part that it shares with its text.
        """
        self.executable = executable
        block = executable.block
        self._own = longest + block  # a branch's first block holds the end of the shared part
        blocks = sum(-(-len(text) // block) for text in texts) + branches * -(-self._own // block) + 1
        requests = len(texts) + branches
        self.cache = BlockCache(blocks, block, spare=1, requests=requests)
        self.state = executable.new_state(blocks, requests)
        self._texts = [_Text(text, self._sequence(len(text))) for text in texts]
        for text, given in zip(self._texts, inputs, strict=True):
            encode(executable, self.state, text.sequence, given)
        self._free = [self._sequence(self._own) for _ in range(branches)]
        self._branches: list[_Branch] = []

    def text_digest(self, text: int, position: int) -> bytes:
        """Returns the digest of one position of a text."""
        self._decode(text, position + 1)
        return self._texts[text].known[position]

    def forget_branches(self) -> None:
        self._branches = []

    def begin(self, text: int, start: int) -> int:
        """Begin a branch with the first `start` tokens of `text`, and return its number."""
        self._decode(text, start)
        block, source = self.executable.block, self._texts[text].sequence
        shared = start // block
        blocks = np.concatenate([source.blocks[:shared], self._free[len(self._branches)].blocks])
        sequence = CachedSequence(block, blocks, start, source.request)
        rest = np.arange(shared * block, start, dtype=np.int32)
        self.executable.copy_slots(self.state, source.home(rest), sequence.home(rest))
        self._branches.append(_Branch(sequence, start))
        return len(self._branches) - 1

    def digest(self, branch: int, tail: tuple[int, ...]) -> bytes:
        """Returns the digest of the last token of `tail`, which follows the branch's beginning."""
        known = self._branches[branch].known
        if tail not in known:
            self._rewind(branch, tail)
        return known[tail]

    def last_row(self, branch: int, tail: tuple[int, ...]) -> Rows:
        """Returns the one-row step that decodes the last token of `tail`; all before it is then in the cache."""
        self._rewind(branch, tail[:-1])
        return self._row(self._branches[branch].sequence, tail[-1])

    def text_row(self, text: int, position: int) -> Rows:
        """Returns the one-row step that decodes a text's token; all before it is then in the cache."""
        self._decode(text, position)
        kept = self._texts[text]
        return self._row(
            CachedSequence(kept.sequence.block, kept.sequence.blocks, position, kept.sequence.request),
            int(kept.tokens[position]),
        )

    def _decode(self, text: int, length: int) -> None:
        """Bring a text's first `length` tokens into the cache."""
        kept = self._texts[text]
        for token in kept.tokens[len(kept.known) : length].tolist():
            kept.known.append(self._feed(kept.sequence, token))

    def _rewind(self, branch_index: int, tail: tuple[int, ...]) -> None:
        """Bring the branch's cache to `tail`: go back to the common prefix, then decode the rest."""
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

    def _feed(self, sequence: CachedSequence, token: int) -> bytes:
        result = self.executable.run(WHOLE, self.state, self._row(sequence, token))
        sequence.length += 1
        return digest(result.logits[0])

    def _row(self, sequence: CachedSequence, token: int) -> Rows:
        return prompt_rows(sequence, np.array([token], np.int32), FIRST_OUTPUT)

    def _sequence(self, positions: int) -> CachedSequence:
        sequence = CachedSequence(self.executable.block, np.empty(0, np.int32))
        self.cache.reserve(sequence, positions)
        return sequence
