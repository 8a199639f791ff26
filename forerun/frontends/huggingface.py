"""transformers models: directories, model objects, tokenizers and chat templates."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from forerun.errors import CorruptFileError, NotAModelError, PromptError
from forerun.frontends.quiet import first_sentence, quiet_libraries

PREFERRED_ATTENTION = "sdpa"
UNREADABLE = (SafetensorError, pickle.UnpicklingError, EOFError, IndexError, RuntimeError)  # from damaged weights
# Sizes that do not fit are reported, so that the error can name them.
LOADING: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}


def load_directory(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The causal language model that a directory holds, all of its weights from the directory."""
    _check_directory(path)
    try:
        with quiet_libraries():
            config = AutoConfig.from_pretrained(path, local_files_only=True)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=dtype, local_files_only=True, **LOADING
            )
    except UNREADABLE as error:
        raise CorruptFileError(
            f"the weights in {path} cannot be read ({first_sentence(error)}): download or save the model again."
        ) from error
    except Exception as error:
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


def prefer_attention(model: nn.Module) -> None:
    """Let the model call torch's attention operation where its code supports it, and compute no cache."""
    if not isinstance(model, PreTrainedModel):
        return
    with quiet_libraries():
        try:
            model.set_attn_implementation(PREFERRED_ATTENTION)
        except (ValueError, ImportError):
            model.set_attn_implementation("eager")
    model.config.use_cache = False


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model, or None when there is none that loads."""
    try:
        with quiet_libraries():
            return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception:
        return None


def object_tokenizer(model: nn.Module) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the directory a model object was loaded from, or None."""
    origin = str(getattr(model, "name_or_path", "") or "")
    return load_tokenizer(origin) if origin and Path(origin).is_dir() else None


def eos_token_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    """The tokens that end a text: from the generation config, else the config, else the tokenizer."""
    config = getattr(model, "config", None)
    for holder in (getattr(model, "generation_config", None), text_config(config), tokenizer):
        declared = getattr(holder, "eos_token_id", None)
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


def encode_chat(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt as a user's turn, ready for the answer; plain text where there is no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        return list(tokenizer.encode(prompt))
    turns = [{"role": "user", "content": prompt}]
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program of the model's author
        raise PromptError(
            f"the model's chat template fails on this prompt ({first_sentence(error)}): encode the text without it "
            "(--raw)."
        ) from error
    # The template writes the special tokens itself.
    return list(tokenizer.encode(str(text), add_special_tokens=False))


def _check_directory(path: Path) -> None:
    config = path / "config.json"
    if not config.is_file():
        ggufs = sorted(path.glob("*.gguf"))
        remedy = f"pass the file {ggufs[0]}" if ggufs else "give a directory written by save_pretrained, or a GGUF file"
        raise NotAModelError(f"{path} holds no config.json: {remedy}.")
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFileError(f"{config} is not valid JSON ({first_sentence(error)}): restore the file.") from error
    weights = [*path.glob("*.safetensors"), *path.glob("*.bin"), *path.glob("*.pt")]
    if not weights:
        raise NotAModelError(f"{path} has a config.json and no weights: add its model.safetensors.")
    if empty := [file for file in weights if file.stat().st_size == 0]:
        raise CorruptFileError(f"{empty[0]} is empty: download or save the model again.")
