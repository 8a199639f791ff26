"""The hooks that keywords of `generate` ask for, in the order of transformers' processors (`_get_logits_processor`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from forerun.errors import InvalidOptionError
from forerun.runtime.hooks import foreign
from forerun.runtime.hooks.base import Hook
from forerun.runtime.hooks.choices import (
    AllowedTokens,
    BadWords,
    ForcedLastToken,
    ForcedSecondToken,
    MinNewTokens,
    NoRepeatedNgrams,
    SuppressFirstTokens,
    SuppressTokens,
)
from forerun.runtime.hooks.penalties import (
    ExponentialLengthPenalty,
    LogitBias,
    OccurrencePenalties,
    RepetitionPenalty,
    SequenceBias,
)
from forerun.runtime.options import require_integer, require_number, require_tokens, unwrapped


@dataclass(frozen=True)
class Given:
    """What a call gives: its keywords, and what hooks need to know besides."""

    keywords: Mapping[str, Any]
    prompt: int  # tokens
    ends: frozenset[int]  # the tokens that end the text
    min_new_tokens: int
    vocabulary: int

    def __contains__(self, keyword: str) -> bool:
        return keyword in self.keywords

    def tokens(self, keyword: str) -> list[int]:
        """Returns the token ids that a keyword gives."""
        return require_tokens(keyword, self.keywords[keyword], self.vocabulary)

    def within(self, keyword: str, tokens: Sequence[Any]) -> tuple[int, ...]:
        """Returns token ids that are part of a keyword's value, checked."""
        return tuple(require_integer(f"a token of {keyword}", each, 0, self.vocabulary - 1) for each in tokens)


def _sequence_bias(given: Given) -> Hook | None:
    value = given.keywords["sequence_bias"]
    pairs = cast("Any", value).items() if isinstance(value, Mapping) else value
    try:
        bias = {given.within("sequence_bias", tuple(sequence)): number for sequence, number in pairs}
    except (TypeError, ValueError) as error:
        raise InvalidOptionError(
            "sequence_bias must be a dictionary of numbers by tuples of token ids, or a list of pairs of both, not "
            f"{value!r}"
        ) from error
    return SequenceBias(bias) if bias else None


def _logit_bias(given: Given) -> Hook | None:
    value = given.keywords["logit_bias"]
    if not isinstance(value, Mapping):
        raise InvalidOptionError(f"logit_bias must be a dictionary of numbers by token ids, not {value!r}")
    bias = cast("Mapping[Any, Any]", value)
    return LogitBias(dict(zip(given.within("logit_bias", [*bias]), bias.values(), strict=True))) if bias else None


def _repetition_penalty(given: Given) -> Hook | None:
    hook = RepetitionPenalty(given.keywords["repetition_penalty"])
    return hook if hook.penalty != 1 else None


def _occurrence_penalties(given: Given) -> Hook | None:
    names = ("presence_penalty", "frequency_penalty")
    presence, frequency = (require_number(name, given.keywords.get(name, 0.0)) for name in names)
    return OccurrencePenalties(presence, frequency) if presence or frequency else None


def _no_repeat_ngram_size(given: Given) -> Hook | None:
    size = require_integer("no_repeat_ngram_size", given.keywords["no_repeat_ngram_size"], least=0)
    return NoRepeatedNgrams(size) if size else None


def _bad_words_ids(given: Given) -> Hook | None:
    value = unwrapped(given.keywords["bad_words_ids"])
    try:
        words = [given.within("bad_words_ids", list(word)) for word in value]
    except TypeError as error:
        raise InvalidOptionError(f"bad_words_ids must be a list of lists of token ids, not {value!r}") from error
    hook = BadWords(words, given.ends)
    return hook if hook.words else None


def _min_new_tokens(given: Given) -> Hook | None:
    return MinNewTokens(given.ends, given.min_new_tokens) if given.ends and given.min_new_tokens else None


def _prefix_allowed_tokens_fn(given: Given) -> Hook:
    return foreign.AllowedByPrefix(given.keywords["prefix_allowed_tokens_fn"])


def _allowed_token_ids(given: Given) -> Hook:
    tokens = given.tokens("allowed_token_ids")
    if not tokens:
        raise InvalidOptionError("allowed_token_ids is empty: give at least one token id, or leave it out")
    return AllowedTokens(tokens)


def _forced_bos_token_id(given: Given) -> Hook | None:
    tokens = given.tokens("forced_bos_token_id")
    return ForcedSecondToken(tokens) if tokens else None


def _forced_eos_token_id(given: Given) -> Hook | None:
    tokens = given.tokens("forced_eos_token_id")
    return ForcedLastToken(tokens) if tokens else None


def _exponential_decay_length_penalty(given: Given) -> Hook | None:
    value = given.keywords["exponential_decay_length_penalty"]
    if not isinstance(value, list | tuple) or len(cast("Sequence[Any]", value)) != 2:
        raise InvalidOptionError(f"exponential_decay_length_penalty must be a pair (start, factor), not {value!r}")
    start, factor = cast("Sequence[Any]", value)
    hook = ExponentialLengthPenalty(start, factor, given.ends)
    return hook if given.ends else None


def _suppress_tokens(given: Given) -> Hook | None:
    tokens = given.tokens("suppress_tokens")
    return SuppressTokens(tokens) if tokens else None


def _begin_suppress_tokens(given: Given) -> Hook | None:
    tokens = given.tokens("begin_suppress_tokens")
    forces = "forced_bos_token_id" in given and given.tokens("forced_bos_token_id")
    return SuppressFirstTokens(tokens, 1 if given.prompt == 1 and forces else 0) if tokens else None


class Rule(NamedTuple):
    """What keywords make of a call."""

    keywords: tuple[str, ...]
    hook: Callable[[Given], Hook | None]  # None if it would change nothing
    replaced_by: str = ""  # transformers' class; an object of it in `logits_processor` takes the hook's place


RULES = (
    Rule(("sequence_bias",), _sequence_bias, "SequenceBiasLogitsProcessor"),
    Rule(("logit_bias",), _logit_bias),
    Rule(("repetition_penalty",), _repetition_penalty, "RepetitionPenaltyLogitsProcessor"),
    Rule(("presence_penalty", "frequency_penalty"), _occurrence_penalties),
    Rule(("no_repeat_ngram_size",), _no_repeat_ngram_size, "NoRepeatNGramLogitsProcessor"),
    Rule(("bad_words_ids",), _bad_words_ids, "NoBadWordsLogitsProcessor"),
    Rule(("min_new_tokens", "min_length"), _min_new_tokens, "MinNewTokensLengthLogitsProcessor"),
    Rule(("prefix_allowed_tokens_fn",), _prefix_allowed_tokens_fn, "PrefixConstrainedLogitsProcessor"),
    Rule(("allowed_token_ids",), _allowed_token_ids),
    Rule(("forced_bos_token_id",), _forced_bos_token_id, "ForcedBOSTokenLogitsProcessor"),
    Rule(("forced_eos_token_id",), _forced_eos_token_id, "ForcedEOSTokenLogitsProcessor"),
    Rule(("exponential_decay_length_penalty",), _exponential_decay_length_penalty, "ExponentialDecayLengthPenalty"),
    Rule(("suppress_tokens",), _suppress_tokens, "SuppressTokensLogitsProcessor"),
    Rule(("begin_suppress_tokens",), _begin_suppress_tokens, "SuppressTokensAtBeginLogitsProcessor"),
)
"""The hooks before those of `logits_processor`, in their order."""
LENGTH = ("min_new_tokens", "min_length")
"""The keywords whose hook is needed only beside others: a request alone can exclude its end tokens, as the last hook
would."""


def hooks_of(given: Given) -> tuple[Hook, ...]:
    """Returns the hooks of a call in their order. Raises `InvalidOptionError`."""
    own = foreign.hooks_of(given.keywords.get("logits_processor"))
    classes = {type(each.processor).__name__: each for each in own if isinstance(each, foreign.Processed)}
    hooks: list[Hook] = []
    needed = bool(own)
    for rule in RULES:
        if not any(keyword in given for keyword in rule.keywords):
            continue
        hook = rule.hook(given)
        if hook is not None:
            hooks.append(classes.get(rule.replaced_by, hook))
            needed = needed or rule.keywords != LENGTH
    for each in own:
        if not (isinstance(each, foreign.Processed) and each in hooks):  # transformers calls no processor twice
            hooks.append(each)
    return tuple(hooks) if needed else ()


def numbered(hooks: Sequence[Hook], number: int) -> tuple[Hook, ...]:
    """Returns the hooks for another text of the same prompt, or of a list: those that know their text's number."""
    return tuple(replace(each, number=number) if isinstance(each, foreign.AllowedByPrefix) else each for each in hooks)
