"""The request that the keywords of `generate` make together; they are transformers' (`runtime.known_keywords`)."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Any, cast

from forerun.errors import InvalidOptionError, PromptError
from forerun.runtime.beams import BeamSearch, beams_of
from forerun.runtime.hooks.grammars import Grammars
from forerun.runtime.hooks.keywords import LENGTH, Given, hooks_of, numbered
from forerun.runtime.known_keywords import GUIDANCE, SAMPLING, check_known
from forerun.runtime.options import require_flag, require_integer, require_tokens
from forerun.runtime.prompt import NEUTRAL, check_companion, opened_encoding, prompt_tokens
from forerun.runtime.prompts import prompts_of
from forerun.runtime.request import Request
from forerun.runtime.sampling import SamplingSettings
from forerun.runtime.spelling import Tokenizer
from forerun.runtime.stopping import Criterion, criteria_of, stop_strings, stop_texts

NEW_TOKENS = 128
"""The most new tokens by default."""


NONE: Mapping[str, Any] = MappingProxyType({})
OF_MODEL = "the model's generation config"


class Unset(Enum):
    """Stands for a keyword that was not given, where None has a meaning."""

    UNSET = "unset"


UNSET = Unset.UNSET


@dataclass(frozen=True)
class Asked:
    """What a call of `generate` requests for one text."""

    request: Request
    criteria: list[Criterion]
    copies: int = 1  # texts of the same prompt
    stop: tuple[str, ...] = ()  # texts before which the text ends
    guidance: Mapping[str, Any] = field(default_factory=dict[str, Any])  # those of `GUIDANCE` that are given
    beams: BeamSearch | None = None  # which finds texts, in place of greedy decoding
    returned: int = 1  # of the texts that it finds


def understood_all(
    input_ids: Any,
    given: Mapping[str, Any],
    vocabulary: int,
    eos_token_ids: frozenset[int],
    tokenizer: Tokenizer | None,
    defaults: Mapping[str, Any] = NONE,
    grammars: Grammars | None = None,
) -> tuple[list[Asked], bool]:
    """Returns what a call requests for each of its texts, and whether it returns a list of them.

    The texts of one prompt follow each other; each has random numbers of its own. `defaults`: the model's own keywords.
    `grammars`: the model's.
    """
    if given.get("inputs") is not None:
        if input_ids is not None:
            raise PromptError("the prompt is given twice, as input_ids and as inputs: give one of them")
        input_ids = given["inputs"]
    if given.get("tokenizer") is None:
        given = {**given, "tokenizer": tokenizer}
    encode: Any = getattr(tokenizer, "encode", None)
    shared = {name: value for name, value in given.items() if name not in ("inputs", *NEUTRAL)}
    prompts, several = prompts_of(input_ids, given, encode)
    found: list[Asked] = []
    for number, (ids, companions) in enumerate(prompts):
        try:
            asked = understood(ids, {**shared, **companions}, vocabulary, eos_token_ids, defaults, grammars)
        except PromptError as error:
            raise error if not several else PromptError(f"prompt {number}: {error}") from error
        several = several or asked.returned > 1
        for copy in range(asked.copies):
            hooks = numbered(asked.request.hooks, len(found))
            found.append(replace(asked, request=replace(asked.request, identifier=copy, hooks=hooks)))
    several = several or len(found) > 1
    if several and given.get("streamer") is not None:
        raise InvalidOptionError("a streamer takes one text: give one prompt, or use model.sessions")
    return found, several


def understood(
    input_ids: Any,
    given: Mapping[str, Any],
    vocabulary: int,
    eos_token_ids: frozenset[int],
    defaults: Mapping[str, Any] = NONE,
    grammars: Grammars | None = None,
) -> Asked:
    """Returns what a call requests. Raises `InvalidOptionError`, and `PromptError` for what belongs to the prompt."""
    keywords = {name: value for name, value in given.items() if value is not UNSET}
    ids, entries = opened_encoding(input_ids)
    keywords = _collected(entries | {name: value for name, value in keywords.items() if value is not None}, defaults)
    prompt = prompt_tokens(ids, vocabulary)
    for name in NEUTRAL:
        if name in keywords:
            check_companion(name, keywords[name], len(prompt))
    _check_unused(keywords)
    if (
        "max_new_tokens" in given
        and given["max_new_tokens"] is None
        and not {"max_new_tokens", "max_length"} & {*keywords}
    ):
        require_integer("max_new_tokens", None, least=1)
    scored = _flag(keywords, "output_scores")
    eos = keywords.get("eos_token_id")
    ends = eos_token_ids if eos is None else stop_tokens(eos, vocabulary)
    least = require_integer("min_new_tokens", _least(keywords, len(prompt)), least=0)
    hooks = hooks_of(Given(keywords, len(prompt), ends, least, vocabulary))
    request = Request(
        prompt=prompt,
        max_new_tokens=_most(keywords, len(prompt)),
        sampling=_sampling(keywords, given),
        stop=ends,
        keep_logits=any([_flag(keywords, "return_logits"), _flag(keywords, "output_logits"), scored]),
        keep_scores=scored,
        min_new_tokens=0 if hooks else least,  # it is one of the hooks, in transformers' order
        allow_nan=keywords.get("allow_nan", False),
        hooks=hooks,
        renormalize=_flag(keywords, "renormalize_logits"),
    )
    if (grammar := keywords.get("grammar")) is not None:
        grammars = grammars or Grammars(None, vocabulary)
        request = replace(request, hooks=(*hooks, grammars.hook(grammar, ends, least)))
    copies = require_integer("num_return_sequences", keywords.get("num_return_sequences", 1), least=1)
    beams = beams_of(keywords, request.sampling.do_sample)
    if copies > 1 and not request.sampling.do_sample and beams is None:
        raise InvalidOptionError(
            f"num_return_sequences={copies} would give the same text {copies} times: add do_sample=True"
        )
    stop, tokenizer = stop_texts(keywords.get("stop")), keywords.get("tokenizer")
    if stop and tokenizer is None:
        raise InvalidOptionError("this model has no tokenizer, so it cannot find stop strings: leave out stop")
    criteria = criteria_of(keywords.get("stopping_criteria")) + stop_strings(keywords.get("stop_strings"), tokenizer)
    guidance = {name: keywords[name] for name in GUIDANCE if name in keywords}
    if beams is not None:
        return Asked(request, criteria, 1, stop, guidance, beams, copies)
    return Asked(request, criteria, copies, stop, guidance)


def _collected(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keywords, with those of a `generation_config` and of the model where they are not given.

    Raises `InvalidOptionError` for unknown ones.
    """
    keywords = dict(given)
    config = _config(keywords.pop("generation_config", None))
    for name in ("input_ids", "inputs", "streamer", *NEUTRAL):
        if name in config:
            raise InvalidOptionError(f"generation_config does not take {name!r}: give it to generate")
    for owner, each in (("generate", keywords), ("generation_config", config), (OF_MODEL, defaults)):
        for name, value in each.items():
            check_known(name, value, owner)
    if (config.keys() | keywords.keys()) & {*LENGTH}:
        defaults = {name: value for name, value in defaults.items() if name not in LENGTH}
    config = {**defaults, **config}
    if not (keywords["do_sample"] if "do_sample" in keywords else config.get("do_sample", False)):
        # A config's sampling settings apply only with do_sample=True.
        config = {name: value for name, value in config.items() if name not in SAMPLING}
    return config | keywords


def _sampling(keywords: Mapping[str, Any], given: Mapping[str, Any]) -> SamplingSettings:
    chosen = {name: keywords[name] for name in ("do_sample", *SAMPLING) if name in keywords}
    return SamplingSettings(**chosen, seed=given.get("seed", 0))


def _check_unused(keywords: Mapping[str, Any]) -> None:
    """Check the types of keywords that change nothing."""
    for name in ("use_cache", "return_dict_in_generate"):
        _flag(keywords, name)
    pad = keywords.get("pad_token_id", 0)
    for each in cast("list[Any]", pad) if isinstance(pad, list | tuple) else [pad]:
        require_integer("pad_token_id", each, least=-1)
    streamer = keywords.get("streamer")
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise InvalidOptionError(
            f"streamer must have put(tokens) and end(), not be {streamer!r}: give one of transformers' streamers"
        )


def _flag(keywords: Mapping[str, Any], name: str) -> bool:
    """Returns whether a keyword is given as True."""
    return require_flag(name, keywords.get(name, False))


def stop_tokens(eos_token_id: Any, vocabulary: int) -> frozenset[int]:
    """Returns the token ids that end a text, from one id or a flat list, array or tensor of them."""
    return frozenset(require_tokens("eos_token_id", eos_token_id, vocabulary))


def _config(config: Any) -> dict[str, Any]:
    """Returns the fields of a generation config that are set."""
    if config is None:
        return {}
    fields = config.to_dict() if hasattr(config, "to_dict") and not isinstance(config, type) else config
    if not isinstance(fields, Mapping):
        raise InvalidOptionError(
            f"generation_config must be a transformers GenerationConfig or a mapping, not {config!r}"
        )
    given = {str(name): value for name, value in cast("Mapping[Any, Any]", fields).items()}
    return {name: value for name, value in given.items() if value is not None and not name.startswith("_")}


def _most(keywords: Mapping[str, Any], prompt: int) -> int:
    """Returns the most new tokens."""
    if "max_length" not in keywords:
        return keywords.get("max_new_tokens", NEW_TOKENS)
    length = require_integer("max_length", keywords["max_length"], least=1)
    if "max_new_tokens" in keywords:
        _warn_of_both("max_new_tokens", "max_length")
        return keywords["max_new_tokens"]
    if length <= prompt:
        raise InvalidOptionError(
            f"max_length={length} leaves no room for a new token after a prompt of {prompt}: it counts both; give a "
            "larger one, or max_new_tokens"
        )
    return length - prompt


def _least(keywords: Mapping[str, Any], prompt: int) -> int:
    """Returns the number of new tokens before which the text does not end."""
    length = require_integer("min_length", keywords.get("min_length", 0), least=0)
    if "min_new_tokens" in keywords:
        if "min_length" in keywords:
            _warn_of_both("min_new_tokens", "min_length")
        return keywords["min_new_tokens"]
    return max(0, length - prompt)


def _warn_of_both(first: str, second: str) -> None:
    warnings.warn(f"{first} and {second} are both given: {first} takes precedence", UserWarning, stacklevel=4)
