"""The rows of a beam search: sequences in the cache that fork, evaluated in one step for all beams."""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np

from forerun.errors import NotANumberError, TooLongError
from forerun.interrupts import uninterrupted
from forerun.runtime.cache import CachedSequence
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Float32
from forerun.runtime.hooks.base import HookStates
from forerun.runtime.request import Request
from forerun.runtime.sampling import as_numbers, log_probabilities, without
from forerun.runtime.search.beams import Beam
from forerun.runtime.serving import PATIENCE, PAUSE
from forerun.runtime.tree import root_only


class BeamRows:
    """Evaluates the beams of a request, all of them in one step.

    It takes room for as many as there can be at the beginning, and gives it back in `close`. The engine is held for a
    step at a time, so that other texts are decoded in between.
    """

    def __init__(self, engine: Engine, request: Request, beams: int) -> None:
        self.engine, self.request, self.beams = engine, request, beams
        self.steps = self.rows = 0
        self._needed = self._blocks()
        self._places: dict[Beam, CachedSequence] = {}  # of the beams that were evaluated last
        self._hooks: dict[Beam, HookStates] = {}  # their states
        self._held: list[CachedSequence] = []  # all sequences that may have blocks
        self._rest = CachedSequence.empty(engine.cache.block)  # holds the room that no beam has taken yet
        self._first_hooks = HookStates(request.hooks, request.begin) if request.hooks else None

    def begin(self, root: Beam) -> None:
        """Takes room, and reads the prompt. What other texts hold is waited for.

        Raises `TooLongError` if there is no room, and `InvalidOptionError` for wrong inputs.
        """
        cache, prompt = self.engine.cache, self.request.prompt[:-1]
        if self._needed > cache.blocks:
            raise self._no_room()
        sequence = CachedSequence.empty(cache.block)
        self._places, self._held = {root: sequence}, [sequence]
        if self._first_hooks is not None:
            self._hooks = {root: self._first_hooks}
        seen, since = None, time.monotonic()
        while not self._enters(sequence):
            now = self.engine.runs, cache.free
            if now != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                raise self._no_room()
            time.sleep(PAUSE)
        while sequence.length < len(prompt):
            with self._turn():
                self.engine.restore(sequence)
                self._read(sequence, prompt, self.engine.executable.max_rows)
        with self._turn():
            if self.engine.shares_prefixes:
                cache.publish(sequence, prompt)

    def evaluate(self, beams: Sequence[Beam]) -> list[Float32]:
        """Returns the scores [V] of each beam's next token. Beams evaluated before leave the cache.

        A beam was evaluated before, or its parent was in the last call.
        """
        with self._turn():
            self._fork(beams)
            found: list[Float32] = []
            for first in range(0, len(beams), self._at_once):
                found += self._step(beams[first : first + self._at_once])
            return found

    def ends(self, beam: Beam, token: int) -> bool:
        """Whether a text ends with a token after a beam that was evaluated last."""
        hooks = self._hooks.get(beam)
        return token in self.request.stop or (hooks is not None and hooks.last([token]) is not None)

    def close(self) -> None:
        """Frees the cache, and ends the hooks."""
        with uninterrupted():
            with self.engine.serving:
                for sequence in [*self._held, self._rest]:
                    self.engine.cache.release(sequence)
            hooks, self._first_hooks = self._first_hooks, None
            if hooks is not None:
                hooks.end()

    # --- the cache

    def _blocks(self) -> int:
        """Returns how many blocks all beams need at most. They share the prompt's full blocks, unless it may have to be
        read again for each (`Engine.restore`). The last new token is not read."""
        block, read = self.engine.cache.block, len(self.request.prompt) - 1
        shared = read // block if self.engine.records is None else 0
        return shared + self.beams * (-(-(read + self.request.max_new_tokens) // block) - shared)

    def _no_room(self) -> TooLongError:
        cache, request = self.engine.cache, self.request
        beams = f"{self.beams} beams of {request.max_new_tokens} new tokens after a prompt of {len(request.prompt)}"
        return TooLongError(
            f"{beams} need {self._needed * cache.block} positions in the cache, but {cache.free_positions} of its "
            f"{cache.blocks * cache.block} are free: give fewer beams or new tokens, or compile with a larger "
            "max_length"
        )

    def _enters(self, sequence: CachedSequence) -> bool:
        """Whether there was room, which is then taken."""
        cache = self.engine.cache
        with self._turn():
            if self._needed > cache.free or not cache.free_requests:
                return False
            if self.engine.shares_prefixes:
                cache.adopt(sequence, self.request.prompt[:-1])
                self.engine.restore(sequence)
            cache.reserve(sequence, 1)
            self.engine.begin(sequence, self.request.inputs)
            return True

    @contextmanager
    def _turn(self) -> Generator[None]:
        """Has the engine for the body. The room that is left is free within, and taken again afterwards."""
        with uninterrupted(), self.engine.serving:
            cache = self.engine.cache
            cache.release(self._rest)
            try:
                yield
            finally:
                present = [each for each in self._held if each.request >= 0]
                used = len({block for sequence in present for block in sequence.blocks.tolist()})
                if present and self._needed > used:
                    self._rest = cache.fork(present[0], 0)  # it takes no place of its own
                    cache.reserve(self._rest, (self._needed - used) * cache.block)

    def _fork(self, beams: Sequence[Beam]) -> None:
        """Gives beams what their parents have, which then leave the cache."""
        if all(beam in self._places for beam in beams):
            return
        cache, places, hooks = self.engine.cache, dict[Beam, CachedSequence](), dict[Beam, HookStates]()
        for beam in beams:
            assert beam.parent is not None
            source = self._places[beam.parent]
            places[beam] = cache.fork(source, source.length)
            self._held.append(places[beam])
            if beam.parent in self._hooks:
                hooks[beam] = self._hooks[beam.parent].forked()
        for sequence in self._places.values():
            cache.release(sequence)
        self._places, self._hooks, self._held = places, hooks, list(places.values())

    def _read(self, sequence: CachedSequence, tokens: Sequence[int], most: int) -> None:
        """Reads at most so many of the tokens that a sequence does not have."""
        at = sequence.length
        self.engine.prefill(sequence, np.array(tokens[at : at + most], np.int32))

    # --- a step

    @property
    def _at_once(self) -> int:
        """The most beams of a step."""
        limits, records = self.engine.executable, self.engine.records
        most = min(limits.max_rows, limits.max_outputs)
        return most if records is None else max(1, min(most, records.records // 2))

    def _step(self, beams: Sequence[Beam]) -> list[Float32]:
        engine, sequences = self.engine, [self._places[beam] for beam in beams]
        texts = [[*self.request.prompt, *beam.token_ids] for beam in beams]
        for sequence, text in zip(sequences, texts, strict=True):
            engine.restore(sequence)
            if sequence.length < len(text) - 1:
                self._read(sequence, text[:-1], len(text))
        results = engine.step(sequences, [root_only(text[-1]) for text in texts])
        self.steps, self.rows = self.steps + 1, self.rows + len(beams)
        for text, result in zip(texts, results, strict=True):
            if not self.request.allow_nan and (broken := result.first_nan([0])) is not None:
                raise NotANumberError(len(text) - 1, broken[1])
        logits = [result.logits(0).copy() for result in results]  # before a hook runs a step
        engine.commit(sequences, results, [[0]] * len(beams))
        return [self._scores(*each) for each in zip(beams, texts, logits, strict=True)]

    def _scores(self, beam: Beam, text: list[int], logits: Float32) -> Float32:
        """Returns the log-probabilities [V] after a beam, changed by hooks, with -inf for forbidden tokens."""
        request = self.request
        scores = log_probabilities(as_numbers(logits)).astype(np.float32)
        if (hooks := self._hooks.get(beam)) is not None:
            tree = root_only(text[-1])
            hooks.reach(text)
            hooks.enter(tree)
            scores = hooks.scores(tree, 0, scores, request.max_new_tokens - beam.length, may_end=True)
        scores = without(scores, request.forbidden(beam.length))
        if request.renormalize and scores.max() > -np.inf:
            scores = log_probabilities(scores).astype(np.float32)
        beam.logits = logits if request.keep_logits else None
        beam.scores = scores if request.keep_scores else None
        return scores
