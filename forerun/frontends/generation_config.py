"""The fields of generation_config.json: those that forerun applies, and those that must have no effect.

The fields are those of transformers' `GenerationConfig`
(https://huggingface.co/docs/transformers/main_classes/text_generation). As in transformers, what a model's config sets
is a default of `generate`: instruct models ship a repetition penalty and a temperature, summarizers a forced end. A
model with a field that forerun does not apply is refused rather than silently give another text.
"""

from collections.abc import Mapping
from typing import Any, Literal, cast

from transformers import GenerationConfig

from forerun.errors import InvalidOptionError

Given = GenerationConfig | Literal["model"] | None
"""The model's own, one that the caller gives, or None for none."""

ENDS = "eos_token_id"
"""The tokens that end a text, which a model has apart from its other defaults."""

APPLIED = frozenset(
    {
        # sampling, and the filters that apply only to sampled texts
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        # what changes the scores of the next token
        *("sequence_bias", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_length"),
        *("min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"),
        *("suppress_tokens", "begin_suppress_tokens", "renormalize_logits"),
        # where a text ends
        "stop_strings",
    }
)
"""Defaults of the keywords of `generate` of the same names."""

WITHOUT_EFFECT = frozenset(
    {
        # the length of a text, and its time limit: keywords of `generate`
        *("max_length", "max_new_tokens", "max_time"),
        # the contents of a result
        *("num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "output_logits"),
        *("return_dict_in_generate",),
        # other special tokens
        *("pad_token_id", "bos_token_id", "decoder_start_token_id"),
        # the schedule: caches, assistants, compilation
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "use_mtp"),
        *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"),
        *("target_lookbehind", "assistant_ensemble_weight", "speculation_type", "compile_config", "disable_compile"),
        *("continuous_batching_config", "low_memory"),
        # read only by a search over several texts
        *("early_stopping", "length_penalty", "diversity_penalty"),
    }
)

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "forced_decoder_ids": ([], ()),
    "remove_invalid_values": (False,),
    "token_healing": (False,),
    "guidance_scale": (1, 1.0),
    "top_h": (),
    "watermarking_config": (),
    "penalty_alpha": (0, 0.0),
    "dola_layers": (),
    "constraints": ([], ()),
    "force_words_ids": ([], ()),
}
"""The fields that change texts and are not applied, with the values under which they do not; None is one of each."""


def applied_fields(config: Any, name: str) -> dict[str, Any]:
    """Returns the defaults of `generate` that a config sets, as JSON has them; none of None.

    Raises `InvalidOptionError` if it sets a field that changes texts and that forerun does not apply. `name`: whose it
    is.
    """
    if config is None:
        return {}
    if not isinstance(config, GenerationConfig):
        raise InvalidOptionError(
            f"generation_config must be a transformers GenerationConfig or None, not {type(config).__name__}."
        )
    fields: Mapping[str, Any] = config.to_diff_dict()  # what is set, not what transformers would take in its place
    found = {field: fields[field] for field in NEUTRAL if fields.get(field) is not None}
    if changing := {field: value for field, value in found.items() if value not in NEUTRAL[field]}:
        shown = ", ".join(f"{field} = {value!r}" for field, value in changing.items())
        raise InvalidOptionError(
            f"the generation config of {name} sets {shown}, which would change the text and which forerun does not "
            "apply: pass generation_config=None (--no-generation-config) to ignore it, or a config without it."
        )
    return {field: _plain(value) for field, value in fields.items() if field in APPLIED and value is not None}


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it: tensors and tuples as lists, a dictionary by tuples as a list of pairs."""
    if isinstance(value, Mapping):
        return [[list(tokens), number] for tokens, number in cast("Mapping[Any, Any]", value).items()]
    if isinstance(value, list | tuple):
        return [_plain(each) for each in cast("list[Any]", value)]
    return value.tolist() if hasattr(value, "tolist") else value
