"""Hooks that others wrote: transformers' logits processors and functions of their form.

They are called once for each token of the text in order, whatever was drafted: a row's scores are computed only if
the tokens before it were chosen. So a processor may keep what it has seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Float32
from forerun.runtime.hooks.base import Hook, Place
from forerun.runtime.hooks.history import Following, Tokens
from forerun.runtime.prompt import as_array

Processor = Callable[[Any, Any], Any]
"""(input_ids [1, n], scores [1, V]) -> scores [1, V], all tensors."""
AllowedAt = Callable[[int, Any], Any]
"""(number of the text, input_ids [n]) -> the token ids that may be next."""


@dataclass(frozen=True)
class Processed(Following):
    """Calls a logits processor of transformers' form, with copies of the tokens and the scores."""

    processor: Processor

    @property
    def name(self) -> str:
        return str(getattr(self.processor, "__name__", type(self.processor).__name__))

    def scores(self, state: Tokens, scores: Float32, place: Place) -> Float32:
        import torch  # processors written for transformers expect its tensors

        given = torch.from_numpy(scores.copy())[None]
        found = self.processor(torch.from_numpy(state.copy())[None], given)
        if not isinstance(found, torch.Tensor):
            raise InvalidOptionError(
                f"the logits processor {self.name} must return a tensor of scores [1, {len(scores)}], not "
                f"{type(found).__name__}"
            )
        if found.shape != given.shape or not found.is_floating_point():
            raise InvalidOptionError(
                f"the logits processor {self.name} must return scores [1, {len(scores)}] of floats, not "
                f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
            )
        return np.array(found[0].detach().cpu().to(torch.float32).numpy())  # the processor may keep its tensor


@dataclass(frozen=True)
class AllowedByPrefix(Following):
    """Excludes all tokens but those that a function of the text so far names: transformers' prefix_allowed_tokens_fn.

    If the hooks before have excluded all of them, they are equally likely.
    """

    function: AllowedAt
    number: int = 0  # of the text

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InvalidOptionError(
                f"prefix_allowed_tokens_fn must be a function (number, input_ids) -> token ids, not {self.function!r}"
            )

    def scores(self, state: Tokens, scores: Float32, place: Place) -> Float32:
        import torch

        allowed = self.function(self.number, torch.from_numpy(state.copy()))
        try:
            ids = as_array(allowed).reshape(-1)
        except ValueError:
            ids = np.array(["?"])
        if not len(ids):
            raise InvalidOptionError(
                f"prefix_allowed_tokens_fn allows no token at position {place.position}: return at least one"
            )
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= len(scores):
            raise InvalidOptionError(
                f"prefix_allowed_tokens_fn must return token ids from 0 to {len(scores) - 1}, not {allowed!r}"
            )
        found = np.full_like(scores, -np.inf)
        found[ids] = scores[ids] if np.any(scores[ids] > -np.inf) else np.float32(0)
        return found


def hooks_of(given: Any) -> list[Hook]:
    """Returns the hooks of `logits_processor`: a `LogitsProcessorList`, another list, or one; None has none."""
    found = [] if given is None else list(cast("Sequence[Any]", given)) if isinstance(given, list | tuple) else [given]
    hooks: list[Hook] = []
    for each in found:
        if isinstance(each, list | tuple):
            hooks += hooks_of(each)
        elif isinstance(each, Hook):
            hooks.append(each)
        elif not callable(each) or isinstance(each, type):
            raise InvalidOptionError(
                f"logits_processor must be callables (input_ids, scores) -> scores or forerun's hooks, not {each!r}: "
                "give a function, transformers' LogitsProcessor or a forerun.hooks.Hook"
            )
        else:
            hooks.append(Processed(cast(Processor, each)))
    return hooks
