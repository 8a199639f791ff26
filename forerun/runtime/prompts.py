"""Several prompts in one call: texts, lists of token ids, or what a tokenizer returns for several texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from forerun.errors import PromptError
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
    if isinstance(input_ids, str):
        return [(_encoded(input_ids, encode), {})], False
    ids, entries = opened_encoding(input_ids)
    entries = entries | {name: companions[name] for name in NEUTRAL if companions.get(name) is not None}
    several = _several(ids)
    if several is None:
        return [(ids, entries)], False
    found: list[Prompt] = []
    for number, each in enumerate(several):
        if isinstance(each, str):
            found.append((_encoded(each, encode), {}))
            continue
        own, with_it = opened_encoding(each)
        rows = {name: _row(name, value, number, len(several)) for name, value in entries.items()}
        found.append(_without_padding(own, rows | with_it, number))
    return found, True


def _several(ids: Any) -> list[Any] | None:
    """Returns the prompts of a nested list, of several texts or encodings, or of an array with several rows."""
    if isinstance(ids, list | tuple):
        given = list(cast("Sequence[Any]", ids))
        nested = bool(given) and not any(np.ndim(each) == 0 and not _is_text(each) for each in given)
        return given if nested and all(_is_text(each) or np.ndim(each) == 1 for each in given) else None
    shape = getattr(ids, "shape", ())
    return list(as_array(ids)) if len(shape) == 2 and shape[0] > 1 else None


def _is_text(each: Any) -> bool:
    return isinstance(each, str | Mapping) or type(each).__name__ == "Encoding"


def _encoded(text: str, encode: Encode | None) -> list[int]:
    if encode is None:
        raise PromptError("this model has no tokenizer, so a prompt must be token ids, not text: encode the text first")
    return list(encode(text))


def _row(name: str, value: Any, number: int, count: int) -> Any:
    """Returns a prompt's row of a keyword that has one for each."""
    rows = value if isinstance(value, list | tuple) else as_array(value)
    if len(rows) != count:
        raise PromptError(f"{name} has {len(rows)} rows for {count} prompts: give one for each prompt, or leave it out")
    return cast("Any", rows)[number]


def _without_padding(ids: Any, rows: dict[str, Any], number: int) -> Prompt:
    """Returns a prompt's own tokens."""
    if "attention_mask" not in rows:
        return ids, rows
    mask, ids = as_array(rows["attention_mask"]), as_array(ids)
    if mask.shape != ids.shape:
        raise PromptError(
            f"the attention_mask of prompt {number} has the shape {list(mask.shape)}, but the prompt has "
            f"{len(ids)} tokens: give one per token"
        )
    own = np.flatnonzero(mask == 1)
    if len(own) == 0 or own[-1] - own[0] + 1 != len(own) or np.any((mask != 0) & (mask != 1)):
        raise PromptError(
            f"the attention_mask of prompt {number} is not a run of ones with zeros before or after it: only padding "
            "may be masked"
        )
    kept = slice(int(own[0]), int(own[-1]) + 1)
    rest = {name: as_array(row)[kept] for name, row in rows.items() if name != "attention_mask"}
    return ids[kept], rest
