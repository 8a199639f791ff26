"""Beam search: which beams go on and which texts are kept, as in transformers' `num_beams`; and groups of beams.

Scores are float32 as there. A text's score is the sum of its tokens' log-probabilities; those are the log-softmax of
the logits, then changed by hooks (transformers' processors), and not normalised again.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from forerun.runtime.beams import BeamSearch
from forerun.runtime.executable import Float32
from forerun.runtime.request import Request

NOTHING = np.float32(0)


@dataclass(eq=False)
class Beam:
    """A text so far: its last token, and the log-probabilities of its new tokens summed. The root is the prompt."""

    score: np.float32 = NOTHING
    token_id: int = -1
    parent: "Beam | None" = None
    logits: Float32 | None = None  # [V] of the next token, if they are kept
    scores: Float32 | None = None  # [V] after the hooks, if they are kept

    def __post_init__(self) -> None:
        self.length: int = 0 if self.parent is None else self.parent.length + 1
        """The number of new tokens."""

    @property
    def path(self) -> "list[Beam]":
        """The beams from the root to this one."""
        path: list[Beam] = []
        beam: Beam | None = self
        while beam is not None:
            path.append(beam)
            beam = beam.parent
        return path[::-1]

    @property
    def token_ids(self) -> list[int]:
        """The new tokens."""
        return [beam.token_id for beam in self.path[1:]]


@dataclass(frozen=True)
class Found:
    """A finished text; `beam` is where it was before its last token."""

    beam: Beam
    token_id: int
    score: np.float32  # with the length penalty
    stopped: bool  # whether it ends by itself, and not for its length


class BeamGroup:
    """The beams of a group, and the texts that it has finished: at most `width` of both."""

    def __init__(self, settings: BeamSearch, request: Request, root: Beam) -> None:
        self.width = settings.num_beams // settings.num_beam_groups
        self.beams, self.found = [root], list[Found]()
        self._settings, self._request = settings, request
        self._most = max(2, 1 + len(request.stop)) * self.width
        """So many candidates that `width` of them go on, whichever end."""

    def extend(self, scores: Sequence[Float32], chosen: Counter[int], ends: Callable[[Beam, int], bool]) -> list[int]:
        """Replaces the beams by the best of their continuations. Returns the tokens that it has chosen.

        scores  the processed log-probabilities [V] of the next token of each beam
        chosen  how many beams of earlier groups have chosen each token
        ends    whether a beam's text ends with a next token
        """
        penalty = np.zeros(len(scores[0]), np.float32)
        for token, count in chosen.items():
            penalty[token] = np.float32(self._settings.diversity_penalty * count)
        sums = np.stack([own - penalty + beam.score for own, beam in zip(scores, self.beams, strict=True)])
        candidates = [
            (self.beams[number // sums.shape[1]], number % sums.shape[1], sums.flat[number])
            for number in largest(sums.reshape(-1), self._most)
        ]
        ending = [ends(beam, token) for beam, token, _ in candidates]
        last = self.beams[0].length + 1 == self._request.max_new_tokens
        for (beam, token, score), stopped in list(zip(candidates, ending, strict=True))[: self.width]:
            if last or stopped:
                self._add(Found(beam, token, score / self._divisor(beam.length + 1), stopped))
        going = [each for each, stopped in zip(candidates, ending, strict=True) if not stopped][: self.width]
        self.beams = [Beam(score, token, beam) for beam, token, score in going]
        tokens = [token for _, token, _ in going]
        if last or not self._may_improve():
            self.beams = []
        return tokens

    def _add(self, found: Found) -> None:
        self.found = sorted([*self.found, found], key=lambda each: -each.score)[: self.width]

    def _may_improve(self) -> bool:
        """Whether the beams may still lead to a text that is kept: transformers' heuristics."""
        if not self.beams or len(self.found) < self.width:
            return bool(self.beams)
        settings = self._settings
        if settings.early_stopping is True:
            return False
        longest = settings.early_stopping == "never" and settings.length_penalty > 0
        length = self._request.max_new_tokens if longest else self.beams[0].length
        return bool(self.beams[0].score / self._divisor(length) > self.found[-1].score)

    def _divisor(self, length: int) -> np.float32:
        return np.float32(length**self._settings.length_penalty)


def largest(scores: Float32, count: int) -> list[int]:
    """Returns the places of the `count` largest scores [n] above -inf, the largest first; on ties the lower place."""
    least = -np.inf if count >= len(scores) else np.partition(scores, len(scores) - count)[len(scores) - count]
    places = np.flatnonzero((scores >= least) & (scores > -np.inf))
    return places[np.argsort(-scores[places], kind="stable")[:count]].tolist()


def ranked(groups: Iterable[BeamGroup]) -> list[Found]:
    """Returns the finished texts of all groups, the best first."""
    return sorted((each for group in groups for each in group.found), key=lambda each: -each.score)
