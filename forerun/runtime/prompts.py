"""Several prompts in one call: texts, lists of token ids, or what a tokenizer returns for several texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from forerun.errors import PromptError, first_sentence
from forerun.runtime.prompt import NEUTRAL, as_array, opened_encoding

Encode = Callable[[str], Sequence[int]]
"""A tokenizer's way from a text to token ids."""
Prompt = tuple[Any, dict[str, Any]]
"""One prompt's token ids, and what came with them (`prompt.NEUTRAL`)."""


def prompts_of(input_ids: Any, companions: Mapping[str, Any], encode: Encode | None) -> tuple[list[Prompt], bool]:
    """Returns the prompts of a call, and whether they are several: also a list of one is.

    `companions`: the keywords that have a row for each prompt. Padding, on either side, is where `attention_mask` is 0.
    Raises `PromptError`.
    """
    given = {name: companions[name] for name in NEUTRAL if companions.get(name) is not None}
    if isinstance(input_ids, str):
        _refuse_beside_text(given)
        return [(_encoded(input_ids, encode), {})], False
    ids, entries = opened_encoding(input_ids)
    entries = entries | given
    several = _several(ids)
    if several is None:
        return [_one(ids, entries, encode, 0) if _is_padded(entries) else (ids, entries)], False
    rows = {name: _rows(name, value, len(several)) for name, value in entries.items() if name in NEUTRAL}
    rest = {name: value for name, value in entries.items() if name not in NEUTRAL}  # refused where it is understood
    return [
        _one(each, {name: own[number] for name, own in rows.items()} | rest, encode, number)
        for number, each in enumerate(several)
    ], True


def _is_padded(entries: Mapping[str, Any]) -> bool:
    """Whether a single prompt has an attention mask with zeros; any other is checked with the prompt."""
    try:
        return 0 in as_array(entries.get("attention_mask", 1))
    except ValueError:
        return False


def flat_tokens(value: Any) -> list[int]:
    """Returns token ids from a list, an array or a tensor, [n] or [1, n], possibly none. Raises `PromptError`."""
    found = _flat("tokens", value)
    if len(found) and not np.issubdtype(found.dtype, np.integer):
        raise PromptError(f"tokens must be token ids, not {found.dtype}: encode the text first")
    return found.tolist()


def _several(ids: Any) -> list[Any] | None:
    """Returns the prompts of a nested list, of several texts or encodings, or of an array with several rows."""
    if isinstance(ids, list | tuple):
        given = list(cast("Sequence[Any]", ids))
        return given if given and all(_is_text(each) or _depth(each) > 0 for each in given) else None
    shape = getattr(ids, "shape", ())
    return list(_array("input_ids", ids)) if len(shape) == 2 and shape[0] > 1 else None


def _is_text(each: Any) -> bool:
    return isinstance(each, str | Mapping) or type(each).__name__ == "Encoding"


def _depth(each: Any) -> int:
    """Returns the number of axes, without looking at what a list holds."""
    return 1 if isinstance(each, list | tuple) else len(getattr(each, "shape", ()))


def _one(given: Any, rows: dict[str, Any], encode: Encode | None, number: int) -> Prompt:
    """Returns one of several prompts, without its padding."""
    if isinstance(given, str):
        _refuse_beside_text(rows)
        return _encoded(given, encode), {}
    ids, own = opened_encoding(given)
    ids, rows = _flat(f"prompt {number}", ids), rows | own
    if "attention_mask" not in rows:
        return ids, rows
    mask = _flat(f"the attention_mask of prompt {number}", rows.pop("attention_mask"))
    if mask.shape != ids.shape:
        raise PromptError(
            f"the attention_mask of prompt {number} has the shape {list(mask.shape)}, but the prompt has "
            f"{len(ids)} tokens: give one per token"
        )
    kept = np.flatnonzero(mask == 1)
    if len(kept) == 0 or kept[-1] - kept[0] + 1 != len(kept) or np.any((mask != 0) & (mask != 1)):
        raise PromptError(
            f"the attention_mask of prompt {number} is not a run of ones with zeros before or after it: only padding "
            "may be masked"
        )
    inside = slice(int(kept[0]), int(kept[-1]) + 1)
    padded = {name: _flat(f"{name} of prompt {number}", row) for name, row in rows.items() if name in NEUTRAL}
    return ids[inside], rows | {name: row[inside] for name, row in padded.items()}


def _refuse_beside_text(rows: Mapping[str, Any]) -> None:
    if rows:
        raise PromptError(f"{next(iter(rows))} belongs to token ids, but the prompt is a text: leave it out")


def _encoded(text: str, encode: Encode | None) -> list[int]:
    if encode is None:
        raise PromptError(
            "this model has no tokenizer, so a prompt must be token ids: encode the text with the tokenizer first"
        )
    try:
        return list(encode(text))
    except Exception as error:  # a tokenizer may raise anything
        raise PromptError(f"the tokenizer cannot encode {text[:20]!r} ({first_sentence(error)}): change it") from error


def _rows(name: str, value: Any, count: int) -> Any:
    """Returns what a keyword says of each prompt."""
    rows = cast("Any", value) if isinstance(value, list | tuple) else _array(name, value)
    if not isinstance(rows, list | tuple) and rows.ndim == 0:
        raise PromptError(f"{name} must have a row for each of the {count} prompts, or be left out")
    if len(rows) != count:
        raise PromptError(f"{name} has {len(rows)} rows for {count} prompts: give one for each prompt, or leave it out")
    return rows


def _flat(name: str, value: Any) -> Any:
    """Returns an array [T] of what is [T] or [1, T]."""
    found = _array(name, value)
    if found.ndim == 2 and len(found) == 1:
        found = found[0]
    if found.ndim != 1:
        raise PromptError(f"{name} must have the shape [T] or [1, T], not {list(found.shape)}")
    return found


def _array(name: str, value: Any) -> Any:
    try:
        return as_array(value)
    except ValueError as error:
        raise PromptError(f"{name} must be an array, a tensor or a list of numbers: give one") from error
