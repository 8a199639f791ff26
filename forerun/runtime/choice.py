"""The choice of the next token at the rows of an evaluated tree."""

import numpy as np

from forerun.errors import NotANumberError
from forerun.runtime.engine import TreeResult
from forerun.runtime.executable import Draw, Executable, Float32
from forerun.runtime.hooks.base import HookStates
from forerun.runtime.request import Request
from forerun.runtime.sampling import as_numbers, choose_token, log_probabilities, scores_of, without

NOTHING = -1
"""Stands for the token after a row where the text does not go on, and is no part of it."""


def drawn_by(executable: Executable, request: Request) -> Draw | None:
    """Returns how an executable samples a request's tokens; None if it does not: in greedy decoding, or with filters.

    It depends on the executable and the request only, so all strategies sample by the same function.
    """
    sampling = request.sampling
    if not executable.draws or not sampling.do_sample or sampling.filters or request.hooks:
        return None
    return Draw(sampling.seed, request.identifier, sampling.temperature)


class Choice:
    """Chooses the next token by a tree row's logits, first at the root, then along a path.

    With a `draw`, the executable has sampled the token. Tokens that are forbidden there are excluded: an allowed token
    that was chosen among more would have been chosen among fewer.

    error   what hooks raise below the root: in plain decoding, the tokens before it would have been committed
    """

    def __init__(
        self, result: TreeResult, request: Request, root: int, draw: Draw | None = None, hooks: HookStates | None = None
    ) -> None:
        """`root`: the root's absolute position. `hooks`: their states, in the tree, if the request has any."""
        self._result, self._request, self._root, self._draw, self._hooks = result, request, root, draw, hooks
        self._hooked: dict[int, Float32] = {}  # [V] by row
        self.error: Exception | None = None

    def __call__(self, row: int) -> int:
        """Returns the token that follows a row, or `NOTHING`. Raises what hooks raise at the root."""
        request, forbidden = self._request, self._forbidden(row)
        if self._hooks is not None:
            try:
                if self._hooks.finish(self._result.tree, row):
                    return NOTHING
                self._scores(row)
            except Exception as error:
                if row == 0:
                    raise
                self.error = error
                return NOTHING
        else:
            if not request.sampling.do_sample:
                chosen = self._result.candidates[row, : len(forbidden) + 1].tolist()
            else:
                chosen = [] if self._draw is None else [int(self._result.drawn[row])]
            free = next((token for token in chosen if token >= 0 and token not in forbidden), None)
            if free is not None:
                return free
        scores = without(self._scores(row), forbidden)
        return choose_token(scores, request.sampling, request.identifier, self._position(row))

    def scores(self, row: int) -> Float32:
        """Returns transformers' scores [V] after a row from which a token was chosen."""
        scores = scores_of(self._scores(row), self._request.sampling, self._forbidden(row))
        return log_probabilities(scores).astype(np.float32) if self._request.renormalize else scores

    def _scores(self, row: int) -> Float32:
        """Returns the logits [V] after the hooks."""
        logits = self._result.logits(row)
        if self._hooks is None:
            return logits
        if row not in self._hooked:
            broken = None if self._request.allow_nan else self._result.first_nan([row])
            if broken is not None:
                raise NotANumberError(self._position(row) - 1, broken[1])
            left = len(self._request.prompt) + self._request.max_new_tokens - self._root - 1
            self._hooked[row] = self._hooks.scores(self._result.tree, row, as_numbers(logits), left)
        return self._hooked[row]

    def _position(self, row: int) -> int:
        return self._root + int(self._result.tree.depth[row]) + 1

    def _forbidden(self, row: int) -> frozenset[int]:
        return self._request.forbidden(self._position(row) - len(self._request.prompt))
