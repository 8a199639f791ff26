"""Prompts as callers have them: token ids, or what a tokenizer returns."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from forerun.errors import PromptError

ENCODE = "encode the text with the tokenizer first"
NEUTRAL = {"attention_mask": "1", "token_type_ids": "0", "position_ids": "the position itself"}
"""What a tokenizer adds to token ids, with the entries that say nothing new about one prompt without padding."""


def opened_encoding(input_ids: Any) -> tuple[Any, dict[str, Any]]:
    """Returns a tokenizer's token ids and what came with them; anything else is unchanged. Raises `PromptError`."""
    if isinstance(input_ids, Mapping):
        entries = {str(name): value for name, value in cast("Mapping[Any, Any]", input_ids).items()}
        if "input_ids" not in entries:
            raise PromptError(f"a prompt given as a mapping needs input_ids, and this one has none: {ENCODE}")
        return entries.pop("input_ids"), entries
    if type(input_ids).__name__ == "Encoding":  # of tokenizers
        return input_ids.ids, {"attention_mask": input_ids.attention_mask}
    return input_ids, {}


def prompt_tokens(input_ids: Any, vocabulary: int) -> list[int]:
    """Returns one prompt's token ids, from a list, an array or a tensor, [T] or [1, T]. Raises `PromptError`."""
    if input_ids is None:
        raise PromptError("there is no prompt: give a text or token ids")
    if isinstance(input_ids, str | bytes | Mapping):
        raise PromptError(
            f"input_ids must be token ids, not {type(input_ids).__name__}: {ENCODE} and give its input_ids"
        )
    try:
        ids = as_array(input_ids)
    except ValueError as error:
        raise PromptError(
            "input_ids must be one list of token ids, or a list of such lists for several prompts"
        ) from error
    if ids.ndim == 2 and len(ids) > 1:
        raise PromptError(f"input_ids holds {len(ids)} prompts, where one is expected")
    if ids.dtype == object or ids.dtype.kind in "US":
        raise PromptError(f"input_ids must be a list of token ids: {ENCODE}")
    if ids.ndim > 2 or ids.ndim == 0:
        raise PromptError(f"input_ids must have the shape [T] or [1, T], not {list(ids.shape)}")
    ids = ids.reshape(-1)
    if len(ids) == 0:
        raise PromptError("the prompt is empty: give at least one token, such as the model's beginning-of-text token")
    if not np.issubdtype(ids.dtype, np.integer):
        raise PromptError(f"input_ids must be token ids, not {ids.dtype}: encode the text with the model's tokenizer")
    outside = ids[(ids < 0) | (ids >= vocabulary)]
    if len(outside):
        raise PromptError(
            f"token id {outside[0]} is outside the vocabulary of {vocabulary}: use the tokenizer of this model"
        )
    return ids.tolist()


def check_companion(name: str, value: Any, length: int) -> None:
    """Check one of `NEUTRAL`, [T] or [1, T], for `length` prompt tokens. Raises `PromptError` naming the position."""
    try:
        given = as_array(value)
        numbers = given.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise PromptError(f"{name} must be an array of numbers, not {type(value).__name__}: leave it out") from error
    if given.shape not in ((length,), (1, length)):
        raise PromptError(
            f"{name} has the shape {list(given.shape)}, but the prompt has {length} tokens: give one per token, "
            "or leave it out"
        )
    expected = {"attention_mask": np.ones(length), "token_type_ids": np.zeros(length)}.get(name, np.arange(length))
    wrong = np.flatnonzero(numbers.reshape(-1) != expected)
    if len(wrong):
        raise PromptError(
            f"{name} is {numbers.reshape(-1)[wrong[0]]:g} at position {wrong[0]}, but only {NEUTRAL[name]} is "
            "supported: give the prompt's own tokens alone, without padding"
        )


def as_array(value: Any) -> Any:
    """Returns any array, tensor or nested list as a numpy array. Raises `ValueError` if it is none."""
    try:
        return np.asarray(value.detach().cpu().tolist() if hasattr(value, "detach") else value)
    except (NotImplementedError, RuntimeError, TypeError) as error:  # tensors without numbers
        raise ValueError(str(error)) from error
