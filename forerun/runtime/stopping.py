"""Stopping criteria: callables of transformers' form, called after each token of the text whatever the strategy."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.request import Request, Step

Criterion = Callable[[Any, Any], Any]
"""(input_ids [1, n] of prompt and text so far, scores) -> whether the text ends here: a bool, or a tensor of one.

`scores` is a tuple of a tensor [1, V] for each new token if scores are kept, else None.
"""


def criteria_of(given: Any) -> list[Criterion]:
    """Returns the criteria of a `StoppingCriteriaList`, another list of callables, or one callable; None has none."""
    found = [] if given is None else list(cast("Any", given)) if isinstance(given, list | tuple) else [given]
    for each in found:
        if not callable(each) or isinstance(each, type):
            raise InvalidOptionError(
                f"stopping_criteria must be callables (input_ids, scores) -> bool, not {each!r}: give a function or "
                "transformers' StoppingCriteria"
            )
    return found


class Stopping:
    """Cuts a text after the first token for which a criterion holds.

    Criteria see one more token each time, in order.
    """

    def __init__(self, request: Request, criteria: list[Criterion]) -> None:
        self.criteria = criteria
        self._text = list(request.prompt)
        self._scores: list[Any] | None = [] if request.keep_scores else None

    def cut(self, step: Step) -> Step:
        """Returns the part of a step that belongs to the text, which is finished if it is cut."""
        if not self.criteria:
            return step
        import torch  # criteria written for transformers expect its tensors

        for number, token in enumerate(step.tokens):
            if self._scores is not None and step.scores is not None:
                self._scores.append(torch.from_numpy(step.scores[number].copy())[None])
            self._text.append(token)
            told = None if self._scores is None else tuple(self._scores)
            answers = [each(torch.tensor([self._text], dtype=torch.int64), told) for each in self.criteria]
            if any(bool(np.all(np.asarray(answer))) for answer in answers):
                return step.cut(number + 1)
        return step
