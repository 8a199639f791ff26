"""Tokenizers as files of a kept folder, written and read without prompts."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from forerun.errors import CorruptFileError
from forerun.frontends.quiet import quiet_libraries
from forerun.frontends.tokenizer import load_tokenizer

CONFIG = "tokenizer_config.json"
GENERAL = PreTrainedTokenizerFast
"""The class of tokenizers that their files describe in full."""


def can_keep(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the files alone restore the tokenizer: not if its class is code that came with a model."""
    return type(tokenizer).__module__.startswith("transformers.")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer's files. Raises OSError, whatever a library raises if the disk is full."""
    try:
        with quiet_libraries():
            tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # the tokenizers package raises Exception itself
        raise OSError(str(error)) from error


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a kept folder. Raises `CorruptFileError`.

    transformers' `AutoTokenizer`, which chooses a class, imports torch; the general class is read without it.
    """
    try:
        general = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["tokenizer_class"] == GENERAL.__name__
    except (OSError, ValueError, KeyError, TypeError):
        general = False
    tokenizer = load_tokenizer(folder, kind=GENERAL if general else None)
    if tokenizer is None:
        raise CorruptFileError(f"{folder} does not hold a tokenizer that loads.")
    return tokenizer
