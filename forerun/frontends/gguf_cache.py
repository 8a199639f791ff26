"""A disk cache of what transformers makes of a GGUF header: the configuration and the tokenizer.

Converting both takes seconds, and depends on nothing but the header's bytes and the version of transformers.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase

from forerun.frontends.huggingface import load_tokenizer
from forerun.frontends.quiet import quiet_libraries
from forerun.storage import cache_directory

CONFIG_FILE = "parsed_config.json"
TOKENIZER_FOLDER = "tokenizer"
Conversion = tuple[dict[str, Any], PreTrainedTokenizerBase | None]


def cached_conversion(digest: str, convert: Callable[[], Conversion]) -> Conversion:
    """The conversion kept under the header's digest, or a new one that is then kept."""
    entry = cache_directory() / "gguf" / f"{digest[:32]}-transformers-{transformers.__version__}"
    kept = _load(entry)
    if kept is not None:
        return kept
    config, tokenizer = convert()
    if tokenizer is not None:
        _store(entry, config, tokenizer)
    return config, tokenizer


def _load(entry: Path) -> Conversion | None:
    try:
        config = json.loads((entry / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    tokenizer = load_tokenizer(entry / TOKENIZER_FOLDER)
    return None if tokenizer is None else (config, tokenizer)


def _store(entry: Path, config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Write beside the entry and rename, so that a reader sees all of it or nothing; a full disk is no error."""
    staging: str | None = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        staging = tempfile.mkdtemp(prefix=".incomplete-", dir=entry.parent)
        with quiet_libraries():
            tokenizer.save_pretrained(Path(staging) / TOKENIZER_FOLDER)
        (Path(staging) / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
        shutil.rmtree(entry, ignore_errors=True)
        os.replace(staging, entry)
    except (OSError, TypeError, ValueError):
        return
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
