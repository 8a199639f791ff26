"""The fields of generation_config.json: those that forerun applies, and whether the others change a greedy text.

The fields are those of transformers' `GenerationConfig`
(https://huggingface.co/docs/transformers/main_classes/text_generation). In transformers some of them change greedy
texts too: instruct models ship a repetition penalty, summarizers a forced end. forerun does not apply these yet, and
refuses a model that sets one rather than silently give another text.
"""

from collections.abc import Mapping
from typing import Any, Literal

from transformers import GenerationConfig

from forerun.errors import InvalidOptionError

Given = GenerationConfig | Literal["model"] | None
"""The model's own, one that the caller gives, or None: go on without the fields that forerun does not apply."""

APPLIED = frozenset({"eos_token_id"})
"""The tokens that end a text."""

SAMPLING = frozenset(
    {"do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
)
"""Defaults for sampling: not applied, since `generate` samples as its own keywords say."""

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
        # a monotone function of the scores
        "renormalize_logits",
    }
)

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "min_length": (0,),
    "min_new_tokens": (0,),
    "stop_strings": ([], ()),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([], ()),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": ([], ()),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": ([], ()),
    "begin_suppress_tokens": ([], ()),
    "sequence_bias": ([], (), {}),
    "token_healing": (False,),
    "guidance_scale": (1, 1.0),
    "watermarking_config": (),
    "penalty_alpha": (0, 0.0),
    "dola_layers": (),
    "constraints": ([], ()),
    "force_words_ids": ([], ()),
}
"""The fields that change greedy texts, with the values under which they do not; None is one of each field's."""


def changing_fields(config: GenerationConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The fields that would change a greedy text, with their values."""
    fields = config if isinstance(config, Mapping) else vars(config)
    found = {name: fields.get(name) for name in NEUTRAL}
    return {name: value for name, value in found.items() if value is not None and value not in NEUTRAL[name]}


def require_applied(config: Any, name: str) -> None:
    """Raise `InvalidOptionError` if a config sets a field that changes greedy texts and forerun does not apply."""
    if config is None:
        return
    if not isinstance(config, GenerationConfig):
        raise InvalidOptionError(
            f"generation_config must be a transformers GenerationConfig or None, not {type(config).__name__}."
        )
    if changing := changing_fields(config):
        shown = ", ".join(f"{field} = {value!r}" for field, value in changing.items())
        raise InvalidOptionError(
            f"the generation config of {name} sets {shown}, which would change the text and which forerun does not "
            f"apply yet: pass generation_config=None (--no-generation-config) to ignore it."
        )
