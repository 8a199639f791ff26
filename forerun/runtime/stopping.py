"""Stopping criteria: callables of transformers' form, called after each token of the text whatever the strategy."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from typing import Any, cast

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Float32
from forerun.runtime.generation import Request, Step

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


def until(
    steps: Iterable[Step],
    request: Request,
    criteria: list[Criterion],
    scores: Callable[[Float32, int], Float32] | None = None,
) -> Generator[Step]:
    """Yields the steps up to the first token after which a criterion holds; that step is cut after this token.

    Criteria see one more token each time, in order. `scores`: of a row of logits and the number of its new token.
    """
    if not criteria:
        yield from steps
        return
    import torch  # criteria written for transformers expect its tensors

    text = list(request.prompt)
    kept: list[Any] = []
    for step in steps:
        for number, token in enumerate(step.tokens):
            if scores is not None and step.logits is not None:
                row = scores(step.logits[number], len(text) - len(request.prompt))
                kept.append(torch.from_numpy(row.copy())[None])
            text.append(token)
            told = None if scores is None else tuple(kept)
            answers = [each(torch.tensor([text], dtype=torch.int64), told) for each in criteria]
            if any(bool(np.all(np.asarray(answer))) for answer in answers):
                logits = None if step.logits is None else step.logits[: number + 1]
                yield replace(step, tokens=step.tokens[: number + 1], logits=logits, finished=True)
                return
        yield step
