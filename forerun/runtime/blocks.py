"""Blocks of the cache as counted references: sequences share prefixes and fork, and what has ended is kept for a while.

A block whose positions are all committed is published under its tokens and its predecessor, so that another sequence
that begins with the same tokens adopts it instead of computing it again; its bits would be the same. Published blocks
of no sequence are kept until room is needed, least recently used first.
"""

from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from forerun.errors import InvalidOptionError, TooLongError
from forerun.runtime.cache import CachedSequence
from forerun.runtime.executable import Int32

REQUESTS = 64
"""The number of sequences that a cache has room for by default."""
BlockKey = tuple[int, tuple[int, ...]]
"""A published block's predecessor, by its number (0: none), and the block's tokens."""


@dataclass
class _Published:
    """The published blocks by key, each with a number that is never used again."""

    blocks: dict[BlockKey, tuple[int, int]] = field(default_factory=dict[BlockKey, tuple[int, int]])  # block, number
    keys: dict[int, BlockKey] = field(default_factory=dict[int, BlockKey])  # by block
    numbers: int = 0

    def add(self, key: BlockKey, block: int) -> int:
        """Publishes a block unless its key already is. Returns the number of the published one."""
        if key not in self.blocks:
            self.numbers += 1
            self.blocks[key] = block, self.numbers
            self.keys[block] = key
        return self.blocks[key][1]

    def forget(self, block: int) -> None:
        if (key := self.keys.pop(block, None)) is not None:
            del self.blocks[key]


class BlockCache:
    """Hands out blocks and spare slots; no slot is written by two sequences.

    The spare slots are in blocks of their own, enough for every row of one step, and belong to one step at a time.
    """

    def __init__(
        self, blocks: int, block: int, spare: int, order: Sequence[int] | None = None, requests: int = REQUESTS
    ) -> None:
        """`order`: a permutation of the blocks, in which they are handed out. `requests`: sequences at one time."""
        order = range(blocks) if order is None else order
        if sorted(order) != list(range(blocks)):
            raise InvalidOptionError(f"order must hold each of the {blocks} blocks once")
        reserved = -(-spare // block)
        if reserved >= blocks:
            raise TooLongError(
                f"a cache of {blocks} blocks of {block} has no room besides {spare} spare slots: add blocks"
            )
        self.block = block
        self.blocks = blocks - reserved
        self._free = list(reversed(order[reserved:]))
        self._idle: OrderedDict[int, None] = OrderedDict()  # published blocks of no sequence, the oldest first
        self._counts = [0] * blocks  # sequences that hold each block
        self._published = _Published()
        self._free_requests = list(reversed(range(requests)))
        self._request_counts = [0] * requests
        starts = np.array(order[:reserved], np.int32) * block
        self.spare = (starts[:, None] + np.arange(block, dtype=np.int32)).reshape(-1)[:spare]

    @property
    def free(self) -> int:
        """The number of blocks that no sequence holds."""
        return len(self._free) + len(self._idle)

    @property
    def is_used(self) -> bool:
        """Whether a sequence holds any block."""
        return self.free < self.blocks

    @property
    def free_positions(self) -> int:
        return self.free * self.block

    @property
    def free_requests(self) -> int:
        """The number of sequences that there is still a place for."""
        return len(self._free_requests)

    def lacking(self, sequence: CachedSequence, positions: int) -> int:
        """Returns how many blocks a sequence must still be given before it can write up to `positions`."""
        return max(0, -(-positions // self.block) - len(sequence.blocks)) + self._shares_its_end(sequence)

    def forget_ended(self) -> None:
        """Keeps nothing of sequences that have ended."""
        for block in self._idle:
            self._published.forget(block)
        self._free.extend(self._idle)
        self._idle.clear()

    def only_of(self, sequence: CachedSequence) -> int:
        """Returns how many blocks become free if a sequence is released."""
        return sum(self._counts[block] == 1 for block in sequence.blocks.tolist())

    # --- giving and taking back

    def reserve(self, sequence: CachedSequence, positions: int) -> None:
        """Give `sequence` room for this many positions in all, or raise `TooLongError` and change nothing."""
        missing = -(-positions // self.block) - len(sequence.blocks)
        if missing <= 0:
            return
        if missing > self.free:
            raise TooLongError(
                f"{positions} positions need {missing * self.block} more in the cache, but {self.free_positions} are "
                "free: shorten the prompt or max_new_tokens, or compile with a larger max_length"
            )
        self._take_request(sequence)
        taken = [self._take() for _ in range(missing)]
        sequence.blocks = np.concatenate([sequence.blocks, np.array(taken, np.int32)])

    def release(self, sequence: CachedSequence) -> None:
        """Take everything back. Published blocks are kept, the later ones to be given away first."""
        for block in reversed(sequence.blocks.tolist()):
            self._drop(block)
        if sequence.request >= 0:
            self._request_counts[sequence.request] -= 1
            if not self._request_counts[sequence.request]:
                self._free_requests.append(sequence.request)
        sequence.forget()

    @contextmanager
    def sequence(self, positions: int) -> Generator[CachedSequence]:
        """Yields a sequence with room for `positions`; its blocks are freed on exit, also after an error."""
        sequence = CachedSequence.empty(self.block)
        try:
            self.reserve(sequence, positions)
            yield sequence
        finally:
            self.release(sequence)

    # --- sharing

    def matching(self, tokens: Sequence[int]) -> list[int]:
        """Returns the published blocks that hold the first of these tokens."""
        found: list[int] = []
        before = 0
        for start in range(0, len(tokens) - self.block + 1, self.block):
            published = self._published.blocks.get((before, tuple(tokens[start : start + self.block])))
            if published is None:
                break
            block, before = published
            found.append(block)
        return found

    def needed(self, tokens: Sequence[int], positions: int) -> int:
        """Returns how many free blocks a new sequence of these tokens takes; blocks that none holds are free.

        Blocks behind one that none holds do not count as held: that one may be given away before.
        """
        held = takewhile(lambda block: self._counts[block] > 0, self.matching(tokens))
        return -(-positions // self.block) - sum(1 for _ in held)

    def adopt(self, sequence: CachedSequence, tokens: Sequence[int]) -> None:
        """Gives an empty sequence the published blocks of its first tokens, which are then committed."""
        blocks = self.matching(tokens)
        if not blocks:
            return
        self._take_request(sequence)
        for block in blocks:
            self._hold(block)
        sequence.blocks = np.array(blocks, np.int32)
        sequence.published = [self._published.blocks[self._published.keys[block]][1] for block in blocks]
        sequence.fixed, sequence.length = len(blocks), len(blocks) * self.block

    def publish(self, sequence: CachedSequence, tokens: Sequence[int]) -> None:
        """Publishes the blocks that a sequence has filled with these tokens, of which those committed count."""
        for number in range(len(sequence.published), sequence.length // self.block):
            before = sequence.published[-1] if sequence.published else 0
            held = tuple(tokens[number * self.block : (number + 1) * self.block])
            sequence.published.append(self._published.add((before, held), int(sequence.blocks[number])))
        sequence.fixed = max(sequence.fixed, len(sequence.published))

    def fork(self, sequence: CachedSequence, length: int) -> CachedSequence:
        """Returns a sequence with the first `length` committed positions of another, in the same blocks."""
        length = min(length, sequence.length)
        blocks = sequence.blocks[: -(-length // self.block)].copy()
        forked = CachedSequence(self.block, blocks, length, sequence.request, len(blocks))
        forked.published = sequence.published[: length // self.block]
        for block in blocks.tolist():
            self._hold(block)
        if sequence.request >= 0:
            self._request_counts[sequence.request] += 1
        sequence.fixed = max(sequence.fixed, len(blocks))
        return forked

    def own(self, sequence: CachedSequence) -> tuple[Int32, Int32] | None:
        """Lets a sequence write its next position; returns slots to copy, from and to, if another one reads its block.

        Raises `TooLongError` if a block is needed and none is free.
        """
        place = sequence.length // self.block
        if place >= sequence.fixed:
            return None
        if self._shares_its_end(sequence) and not self.free:
            raise TooLongError("a forked sequence needs a block of the cache, but none is free: end another sequence")
        for later in sequence.blocks[place + 1 :].tolist():
            self._drop(later)
        sequence.blocks, sequence.fixed = sequence.blocks[: place + 1].copy(), place
        del sequence.published[place:]
        if not len(sequence.blocks[place:]):
            return None
        block = int(sequence.blocks[place])
        if self._counts[block] == 1:
            self._published.forget(block)
            return None
        sequence.blocks[place] = self._take()
        self._drop(block)
        offsets = np.arange(sequence.length % self.block, dtype=np.int32)
        return block * self.block + offsets, sequence.blocks[place] * self.block + offsets

    def _shares_its_end(self, sequence: CachedSequence) -> bool:
        place = sequence.length // self.block
        return place < min(sequence.fixed, len(sequence.blocks)) and self._counts[int(sequence.blocks[place])] > 1

    # --- single blocks

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._published.forget(block)
        self._counts[block] = 1
        return block

    def _hold(self, block: int) -> None:
        self._idle.pop(block, None)
        self._counts[block] += 1

    def _drop(self, block: int) -> None:
        self._counts[block] -= 1
        if self._counts[block]:
            return
        if block in self._published.keys:
            self._idle[block] = None
        else:
            self._free.append(block)

    def _take_request(self, sequence: CachedSequence) -> None:
        if sequence.request >= 0:
            return
        if not self._free_requests:
            raise TooLongError("all places for sequences are taken: end a sequence, or give the cache more requests")
        sequence.request = self._free_requests.pop()
        self._request_counts[sequence.request] = 1
