"""The tables of the keywords of `generate`.

Each keyword is in one: those that say what is generated (`Keywords`), those that change no text whatever their value
(`NO_EFFECT`), and those that have one value without effect (`NEUTRAL_VALUES`). Any other value would change the text,
and is rejected by name.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypedDict

from forerun.errors import InvalidOptionError
from forerun.runtime.sampling import FILTERS


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
    output_scores           whether the scores are kept: the logits after hooks, min_new_tokens, temperature and filters
    renormalize_logits      whether these scores are log-probabilities
    num_beams               beams of a beam search (`runtime.beams.BeamSearch`), which returns the likeliest texts
    num_beam_groups, diversity_penalty, length_penalty, early_stopping  its settings
    num_return_sequences    sampled texts of each prompt, each with random numbers of its own; or the best of beams
    allow_nan               whether NaN counts as the smallest logit; otherwise it raises NotANumberError

    Filters of sampled tokens, after top_k and top_p (`runtime.sampling.SamplingSettings`):

    min_p, typical_p, epsilon_cutoff, eta_cutoff

    What changes the scores of the next token, in this order (`runtime.hooks`):

    sequence_bias           numbers that are added to the scores of last tokens, by sequences of tokens
    logit_bias              numbers that are added to scores, by token ids
    repetition_penalty      the divisor of the scores of all tokens before
    presence_penalty        what is subtracted from the scores of new tokens that occurred
    frequency_penalty       what is subtracted for each time that they did
    no_repeat_ngram_size    the length of runs of tokens that occur once
    bad_words_ids           sequences of tokens that do not occur
    prefix_allowed_tokens_fn (number of the text, input_ids [n]) -> the token ids that may be next
    allowed_token_ids       the only token ids that may be chosen
    forced_bos_token_id     the first new token after a prompt of one
    forced_eos_token_id     the last token for which there is room
    exponential_decay_length_penalty (start, factor): end tokens become likelier after `start` new tokens
    suppress_tokens         token ids that are not chosen
    begin_suppress_tokens   token ids that are not the first new one
    guidance_scale          the scale of classifier-free guidance; 1 for none (`hooks.contrasts.Guidance`)
    negative_prompt_ids     the prompt that it guides away from, or one for each prompt; else the prompt's last token
    negative_prompt_attention_mask  zeros for the padding of several
    grammar                 what the text must be: a JsonSchema, Regex or Lark of `forerun.hooks`
    logits_processor        callables (input_ids [1, n], scores [1, V]) -> scores, or `forerun.hooks`, called in order
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
    renormalize_logits: bool | None
    min_p: float | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    sequence_bias: Any
    logit_bias: Mapping[int, float] | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    no_repeat_ngram_size: int | None
    bad_words_ids: Any
    prefix_allowed_tokens_fn: Any
    allowed_token_ids: Any
    forced_bos_token_id: Any
    forced_eos_token_id: Any
    exponential_decay_length_penalty: Any
    suppress_tokens: Any
    begin_suppress_tokens: Any
    logits_processor: Any
    grammar: Any
    guidance_scale: float | None
    negative_prompt_ids: Any
    negative_prompt_attention_mask: Any


GUIDANCE = ("guidance_scale", "negative_prompt_ids", "negative_prompt_attention_mask")
"""The keywords for which the model itself is needed."""


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
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "penalty_alpha": (0.0,),
    "remove_invalid_values": (False,),
    "token_healing": (False,),
    "use_mtp": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
}
INSTEAD = {
    "assistant_model": "compile with strategy='draft_model:PATH'",
    "dola_layers": "give logits_processor=forerun.hooks.Dola(model, layers)",
}
"""What does here what keywords of transformers do there."""
SAMPLING = ("temperature", *FILTERS)


def check_known(name: str, value: Any, owner: str) -> None:
    """Raises `InvalidOptionError` for a keyword of `owner` that is in no table, and for a value that is not taken."""
    if name not in NEUTRAL_VALUES:
        if name in known_keywords() or name in NO_EFFECT:
            return
        if name in INSTEAD:
            raise InvalidOptionError(f"{owner} does not take {name!r}: {INSTEAD[name]}")
        near = get_close_matches(name, known_keywords(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known_keywords())}"
        raise InvalidOptionError(f"{owner} does not take {name!r}; {hint}")
    neutral = NEUTRAL_VALUES[name]
    if not any(_equal(value, each) for each in neutral):
        raise InvalidOptionError(f"{owner} takes only {name}={neutral[0]!r}, not {value!r}: leave it out")


def known_keywords() -> tuple[str, ...]:
    """Returns all keywords that have an effect, or that callers often give."""
    return (*FIRST, *Keywords.__annotations__)


def _equal(value: Any, neutral: Any) -> bool:
    try:
        same_kind = isinstance(value, bool) == isinstance(neutral, bool)
        return same_kind and bool(value == neutral)
    except (ValueError, TypeError, RuntimeError):  # arrays of several elements
        return False
