"""Stopping criteria: callables of transformers' form, called after each token of the text whatever the strategy."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from forerun.errors import InvalidOptionError, first_sentence
from forerun.runtime.executable import Float32
from forerun.runtime.request import Request, Step
from forerun.runtime.spelling import StoppedText, Tokenizer

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


def stop_texts(given: Any) -> tuple[str, ...]:
    """Returns the stop strings of a text or of several; None has none."""
    found = () if given is None else (given,) if isinstance(given, str) else given
    if not isinstance(found, list | tuple) or not all(isinstance(each, str) and each for each in found):
        raise InvalidOptionError(f"stop must be a text or a list of texts, none of them empty, not {given!r}")
    return tuple(cast("list[str]", found))


def stop_strings(given: Any, tokenizer: Tokenizer | None) -> list[Criterion]:
    """Returns transformers' criterion for `stop_strings`, which stay in the text; none if there are none."""
    if not (strings := stop_texts(given)):
        return []
    from transformers import StopStringCriteria

    if not hasattr(tokenizer, "get_vocab"):
        raise InvalidOptionError(
            "stop_strings need a tokenizer of transformers: give tokenizer=, or stop= and stop_strings=[]"
        )
    try:
        return [StopStringCriteria(cast("Any", tokenizer), list(strings))]
    except Exception as error:  # it takes a tokenizer apart, each in its own way
        raise InvalidOptionError(
            f"transformers cannot find stop_strings with this tokenizer ({first_sentence(error)}): give stop= and "
            "stop_strings=[]"
        ) from error


class Stopping:
    """Cuts a text after the first token for which a criterion holds, or that completes a stop string.

    Criteria see one more token each time, in order.
    """

    def __init__(self, request: Request, criteria: list[Criterion], text: StoppedText | None = None) -> None:
        self.criteria, self.text = criteria, text
        self.stopped = False  # whether the text has been cut
        self._text = list(request.prompt)
        self._scores: list[Any] | None = [] if request.keep_scores else None

    def cut(self, step: Step) -> Step:
        """Returns the part of a step that belongs to the text, which is finished if it is cut."""
        if not self.criteria and self.text is None:
            return step
        for number, token in enumerate(step.tokens):
            scores = None if step.scores is None else step.scores[number]
            ends = self.text is not None and self.text.add(token)
            if (self.criteria and self._hold(token, scores)) or ends:
                self.stopped = True
                return step.cut(number + 1)
        return step

    def _hold(self, token: int, scores: Float32 | None) -> bool:
        """Whether a criterion holds after one more token."""
        import torch  # criteria written for transformers expect its tensors

        if self._scores is not None and scores is not None:
            self._scores.append(torch.from_numpy(scores.copy())[None])
        self._text.append(token)
        told = None if self._scores is None else tuple(self._scores)
        answers = [each(torch.tensor([self._text], dtype=torch.int64), told) for each in self.criteria]
        return any(bool(np.all(np.asarray(answer))) for answer in answers)
