"""The keywords of classifier-free guidance: `guidance_scale` and `negative_prompt_ids`, with transformers' meanings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from forerun.errors import InvalidOptionError
from forerun.runtime.hooks.base import Hook
from forerun.runtime.hooks.companions import Model
from forerun.runtime.hooks.contrasts import Guidance
from forerun.runtime.keywords import Asked
from forerun.runtime.options import require_number
from forerun.runtime.prompts import prompts_of


def guided(model: Model, asked: Sequence[Asked]) -> list[Asked]:
    """Returns what a call requests, with a hook before all others where it asks for guidance.

    A negative prompt is for all prompts of the call; several are for one each. Raises `InvalidOptionError` and
    `PromptError`.
    """
    keywords = asked[0].guidance  # one call's are the same
    if not keywords:
        return list(asked)
    hooks = _hooks(model, keywords)
    if len(hooks) == 1:
        return [_with(each, hooks[0]) for each in asked]
    copies = asked[0].copies  # of each prompt, one after another
    if len(hooks) * copies != len(asked):
        raise InvalidOptionError(
            f"{len(hooks)} negative prompts for {len(asked) // copies} prompts: give one for all, or one for each"
        )
    return [_with(each, hooks[number // copies]) for number, each in enumerate(asked)]


def _hooks(model: Model, keywords: Mapping[str, Any]) -> list[Hook | None]:
    """Returns the hook of each negative prompt; None for a scale of 1, which changes no text."""
    scale, negative = keywords.get("guidance_scale"), keywords.get("negative_prompt_ids")
    if scale is None:
        raise InvalidOptionError("a negative prompt needs guidance_scale: add one, such as 1.5, or leave both out")
    scale = require_number("guidance_scale", scale)
    if negative is None:
        if "negative_prompt_attention_mask" in keywords:
            raise InvalidOptionError("negative_prompt_attention_mask is given without negative_prompt_ids: add them")
        prompts: list[Any] = [None]
    else:
        mask = {"attention_mask": keywords.get("negative_prompt_attention_mask")}
        prompts = [tokens for tokens, _ in prompts_of(negative, mask, getattr(model.tokenizer, "encode", None))[0]]
    guidance = [Guidance(model, scale, each) for each in prompts]
    return [None if each.scale == 1 else each for each in guidance]


def _with(asked: Asked, hook: Hook | None) -> Asked:
    hooks = asked.request.hooks if hook is None else (hook, *asked.request.hooks)
    return replace(asked, request=replace(asked.request, hooks=hooks))
