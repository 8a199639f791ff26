"""The keywords of `generate`, which are transformers', and the request that they make together.

Each is in one table: those that say what is generated (`Keywords`), those that change no text whatever their value
(`NO_EFFECT`), and those that have one value without effect (`NEUTRAL_VALUES`). Any other value would change the text,
and is rejected by name.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import Enum
from typing import Any, TypedDict, cast

import numpy as np

from forerun.errors import InvalidOptionError, PromptError
from forerun.runtime.beams import BeamSearch, beams_of
from forerun.runtime.options import require_flag, require_integer
from forerun.runtime.prompt import NEUTRAL, check_companion, opened_encoding, prompt_tokens
from forerun.runtime.prompts import prompts_of
from forerun.runtime.request import Request
from forerun.runtime.sampling import SamplingSettings
from forerun.runtime.spelling import Tokenizer
from forerun.runtime.stopping import Criterion, criteria_of, stop_strings, stop_texts

NEW_TOKENS = 128
"""The most new tokens by default."""


class Unset(Enum):
    """Stands for a keyword that was not given, where None has a meaning."""

    UNSET = "unset"


UNSET = Unset.UNSET


class Keywords(TypedDict, total=False):
    """The keywords of `generate` besides its first parameters. None stands for the default.

    inputs                  the prompt, by transformers' name
    attention_mask          ones, with zeros for padding before or after the prompt
    token_type_ids          all zeros
    position_ids            0, 1, 2, ...
    max_length              prompt and new tokens together; max_new_tokens has precedence
    min_new_tokens          new tokens before which no token of eos_token_id is chosen
    min_length              the same for prompt and new tokens together; min_new_tokens has precedence
    generation_config       a transformers GenerationConfig or a mapping of keywords; direct ones have precedence
    stop                    a text or several: the text ends before the first that appears in it (`Generation.text`)
    stop_strings            the same, but the text ends with it, as in transformers
    tokenizer               of `stop_strings`, by default the model's
    stopping_criteria       callables (input_ids [1, n], scores) -> bool, called after each token in order
    return_dict_in_generate True or False: a `Generation` is returned in either case
    output_logits           whether the logits are kept, like return_logits
    output_scores           whether the scores are kept: the logits after min_new_tokens, temperature, top_k and top_p
    num_beams               beams of a beam search (`runtime.beams.BeamSearch`), which returns the likeliest texts
    num_beam_groups, diversity_penalty, length_penalty, early_stopping  its settings
    num_return_sequences    sampled texts of each prompt, each with random numbers of its own; or the best of beams
    allow_nan               whether NaN counts as the smallest logit; otherwise it raises NotANumberError
    """

    inputs: Any
    attention_mask: Any
    token_type_ids: Any
    position_ids: Any
    max_length: int | None
    min_new_tokens: int | None
    min_length: int | None
    generation_config: Any
    stop: Any
    stop_strings: Any
    tokenizer: Any
    stopping_criteria: Any
    return_dict_in_generate: bool | None
    output_logits: bool | None
    output_scores: bool | None
    allow_nan: bool | None
    use_cache: bool | None
    pad_token_id: int | None
    num_beams: int | None
    num_beam_groups: int | None
    diversity_penalty: float | None
    length_penalty: float | None
    early_stopping: bool | str | None
    num_return_sequences: int | None


FIRST = (
    "input_ids", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "seed", "eos_token_id",
    "return_logits", "streamer",
)  # fmt: skip
"""The keywords in the signature of `generate`."""
NO_EFFECT = frozenset(
    (
        "use_cache", "pad_token_id", "bos_token_id", "decoder_start_token_id", "cache_implementation", "cache_config",
        "max_cache_len", "compile_config", "disable_compile", "prefill_chunk_size", "low_memory", "synced_gpus",
        "continuous_batching_config", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
        "assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
        "assistant_ensemble_weight", "prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type",
        "transformers_version",
    )
)  # fmt: skip
"""Caching, drafting and padding change only the schedule."""
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "typical_p": (1.0,),
    "min_p": (0.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "guidance_scale": (1.0,),
    "penalty_alpha": (0.0,),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "token_healing": (False,),
    "use_mtp": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "logits_processor": ([], ()),
}
SAMPLING = ("temperature", "top_k", "top_p")


@dataclass(frozen=True)
class Asked:
    """What a call of `generate` requests for one text."""

    request: Request
    criteria: list[Criterion]
    copies: int = 1  # texts of the same prompt
    stop: tuple[str, ...] = ()  # texts before which the text ends
    beams: BeamSearch | None = None  # which finds them, in place of sampling


def understood_all(
    input_ids: Any,
    given: Mapping[str, Any],
    vocabulary: int,
    eos_token_ids: frozenset[int],
    tokenizer: Tokenizer | None,
) -> tuple[list[Asked], bool]:
    """Returns what a call requests for each of its texts, and whether it returns a list of them.

    The texts of one prompt follow each other; each has random numbers of its own.
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
            asked = understood(ids, {**shared, **companions}, vocabulary, eos_token_ids)
        except PromptError as error:
            raise error if not several else PromptError(f"prompt {number}: {error}") from error
        several = several or asked.copies > 1
        copies = (replace(asked.request, identifier=copy) for copy in range(1 if asked.beams else asked.copies))
        found.extend(replace(asked, request=request) for request in copies)
    several = several or len(found) > 1
    if several and given.get("streamer") is not None:
        raise InvalidOptionError("a streamer takes one text: give one prompt, or use model.sessions")
    return found, several


def understood(input_ids: Any, given: Mapping[str, Any], vocabulary: int, eos_token_ids: frozenset[int]) -> Asked:
    """Returns what a call requests. Raises `InvalidOptionError`, and `PromptError` for what belongs to the prompt."""
    keywords = {name: value for name, value in given.items() if value is not UNSET}
    ids, entries = opened_encoding(input_ids)
    keywords = _collected(entries | {name: value for name, value in keywords.items() if value is not None})
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
    request = Request(
        prompt=prompt,
        max_new_tokens=_most(keywords, len(prompt)),
        sampling=_sampling(keywords, given),
        stop=eos_token_ids if eos is None else stop_tokens(eos, vocabulary),
        keep_logits=any([_flag(keywords, "return_logits"), _flag(keywords, "output_logits"), scored]),
        keep_scores=scored,
        min_new_tokens=_least(keywords, len(prompt)),
        allow_nan=keywords.get("allow_nan", False),
    )
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
    return Asked(request, criteria, copies, stop, beams)


def _collected(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keywords, those of a `generation_config` included. Raises `InvalidOptionError` for others."""
    keywords = dict(given)
    config = _config(keywords.pop("generation_config", None))
    for name in ("input_ids", "inputs", "streamer", *NEUTRAL):
        if name in config:
            raise InvalidOptionError(f"generation_config does not take {name!r}: give it to generate")
    for owner, each in (("generate", keywords), ("generation_config", config)):
        for name, value in each.items():
            _check_known(name, value, owner)
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
    try:
        given = np.asarray(eos_token_id)
    except ValueError as error:
        raise InvalidOptionError("eos_token_id must be a token id or one list of them: give a flat list") from error
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise InvalidOptionError(f"eos_token_id must be a token id or a list of them, not {eos_token_id!r}")
    return frozenset(require_integer("eos_token_id", each, 0, vocabulary - 1) for each in given.reshape(-1).tolist())


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


def _check_known(name: str, value: Any, owner: str) -> None:
    if name not in NEUTRAL_VALUES:
        if name in known_keywords() or name in NO_EFFECT:
            return
        near = get_close_matches(name, known_keywords(), n=1)
        hint = f"did you mean {near[0]!r}? It takes" if near else "it takes"
        raise InvalidOptionError(f"{owner} does not take {name!r}; {hint} {', '.join(known_keywords())}")
    neutral = NEUTRAL_VALUES[name]
    if not any(_equal(value, each) for each in neutral):
        raise InvalidOptionError(
            f"{owner} takes only {name}={neutral[0]!r}, not {value!r}: leave it out; it takes "
            f"{', '.join(known_keywords())}"
        )


def _equal(value: Any, neutral: Any) -> bool:
    try:
        same_kind = isinstance(value, bool) == isinstance(neutral, bool)
        return same_kind and bool(value == neutral)
    except (ValueError, TypeError, RuntimeError):  # arrays of several elements
        return False


def known_keywords() -> tuple[str, ...]:
    """Returns all keywords that have an effect, or that callers often give."""
    return (*FIRST, *Keywords.__annotations__)


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
