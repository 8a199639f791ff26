"""transformers models: directories and model objects."""

import pickle
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from forerun.errors import CorruptFileError, NotAModelError, first_sentence
from forerun.forking import BUILDING
from forerun.frontends.directory import check_directory, require_no_code
from forerun.frontends.quiet import quiet_libraries

PREFERRED_ATTENTION = "sdpa"
PREFERRED_EXPERTS = "batched_mm"
"""Products with each row's chosen matrices; transformers' default is a loop over values, which cannot be traced."""
UNREADABLE = (SafetensorError, pickle.UnpicklingError, EOFError, IndexError, RuntimeError)  # from damaged weights
# Sizes that do not fit are reported, so that the error can name them.
LOADING: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}


def load_directory(path: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal language model that a directory holds, all of its weights from the directory.

    Code in the directory runs only under `trust_remote_code`; the user is not prompted.
    """
    check_directory(path)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        with BUILDING, quiet_libraries():
            config = AutoConfig.from_pretrained(path, **options)
            loaded: Any = AutoModelForCausalLM.from_pretrained(path, config=config, dtype=dtype, **options, **LOADING)
    except UNREADABLE as error:
        raise CorruptFileError(
            f"the weights in {path} cannot be read ({first_sentence(error)}): download or save the model again."
        ) from error
    except Exception as error:
        require_no_code(path, error, trust_remote_code)
        raise NotAModelError(
            f"transformers cannot load a causal language model from {path} ({first_sentence(error)}): "
            f"give a directory written by save_pretrained of a decoder model."
        ) from error
    model, report = loaded
    check_complete(report, str(path))
    return model


def check_complete(report: Mapping[str, Any], name: str) -> None:
    """Raise `NotAModelError` when weights are missing or do not fit: transformers fills them with random numbers."""
    missing = sorted(report["missing_keys"])
    misfits = sorted(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    if misfits:
        raise NotAModelError(
            f"{name} has weights of another size than its configuration says ({_listed(misfits)}): "
            f"give the configuration that belongs to the weights."
        )
    if missing:
        raise NotAModelError(
            f"{name} lacks weights that its causal language model needs ({_listed(missing)}): "
            f"give a checkpoint of the decoder with its head."
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def prefer_traceable(model: nn.Module) -> None:
    """Let the model call torch's attention operation and batched experts where its code can, and compute no cache."""
    if not isinstance(model, PreTrainedModel):
        return
    with quiet_libraries():
        try:
            model.set_attn_implementation(PREFERRED_ATTENTION)
        except (ValueError, ImportError):
            model.set_attn_implementation("eager")
        with suppress(ValueError):  # it has no experts, or none whose code can be chosen
            model.set_experts_implementation(PREFERRED_EXPERTS)
    model.config.use_cache = False


def keep_all_positions(cache: Any) -> None:
    """Has a cache's layers with a sliding window keep all positions, as the others do; the window is in the masks."""
    layers: list[Any] = getattr(cache, "layers", None) or []
    for at, layer in enumerate(layers):
        if type(layer) is DynamicSlidingWindowLayer:
            layers[at] = plain = DynamicLayer()
            for name in ("keys", "values", "dtype", "device", "is_initialized"):
                setattr(plain, name, getattr(layer, name))


def eos_token_ids(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, generation: Any = None
) -> tuple[int, ...]:
    """The tokens that end a text: from the caller's generation config, the model's, its config, or the tokenizer."""
    config = getattr(model, "config", None)
    holders = (generation, getattr(model, "generation_config", None), text_config(config), tokenizer)
    return first_ends(getattr(each, "eos_token_id", None) for each in holders)


def first_ends(declarations: Iterable[Any]) -> tuple[int, ...]:
    """The tokens of the first declaration that is an id or a list of them."""
    for declared in declarations:
        if isinstance(declared, int):
            return (declared,)
        if isinstance(declared, (list, tuple)) and declared:
            return tuple(int(token) for token in declared)
    return ()


def position_limit(model: nn.Module) -> int | None:
    """The positions that the config declares, or None."""
    limit = getattr(text_config(getattr(model, "config", None)), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def text_config(config: Any) -> Any:
    """The text part of a config, or the config itself."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config
