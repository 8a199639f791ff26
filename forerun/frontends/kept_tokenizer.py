"""Tokenizers as files of a kept folder, written and read without prompts."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from forerun.errors import CorruptFileError
from forerun.frontends.quiet import quiet_libraries
from forerun.frontends.tokenizer import load_tokenizer


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
    """The tokenizer of a kept folder. Raises `CorruptFileError`."""
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise CorruptFileError(f"{folder} does not hold a tokenizer that loads.")
    return tokenizer
