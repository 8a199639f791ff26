"""Tokenizers of transformers. Importing this does not import its models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import transformers
from transformers import PreTrainedTokenizerBase

from forerun.errors import CorruptFileError, first_sentence
from forerun.frontends.directory import require_no_code, tokenizer_files
from forerun.frontends.quiet import quiet_libraries

if TYPE_CHECKING:
    from torch import nn


def load_tokenizer(
    path: str | Path, trust_remote_code: bool = False, kind: type[PreTrainedTokenizerBase] | None = None
) -> PreTrainedTokenizerBase | None:
    """The tokenizer next to a model, or None if there is none. Raises `CorruptFileError` for one that is damaged.

    `kind`: its class, if it is known.
    """
    path = Path(path)
    files = tokenizer_files(path)
    if not files:
        return None
    try:
        with quiet_libraries():
            if kind is not None:
                return kind.from_pretrained(path, local_files_only=True)
            return transformers.AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        require_no_code(path, error, trust_remote_code)
        raise CorruptFileError(
            f"the tokenizer in {path} cannot be read ({first_sentence(error)}): restore {files[0].name}, or remove the "
            f"tokenizer's files to go on without one."
        ) from error


def object_tokenizer(model: nn.Module, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the directory a model object was loaded from, or None."""
    origin = str(getattr(model, "name_or_path", "") or "")
    return load_tokenizer(origin, trust_remote_code) if origin and Path(origin).is_dir() else None
