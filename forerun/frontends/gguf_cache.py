"""A disk cache of what transformers builds from a GGUF header: the configuration and the tokenizer.

Converting both takes seconds, and depends on the header's bytes, on the libraries that convert, and on forerun's own
code for it.
"""

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from forerun.entries import Entry, new_entry
from forerun.errors import CorruptFileError
from forerun.frontends.kept_tokenizer import can_keep, read_tokenizer, save_tokenizer
from forerun.storage import cache_directory, keeping

CONFIG_FILE = "parsed_config.json"
TOKENIZER_FOLDER = "tokenizer"
LIBRARIES = ("transformers", "tokenizers", "gguf")
Conversion = tuple[dict[str, Any], PreTrainedTokenizerBase | None]


def cached_conversion(digest: str, convert: Callable[[], Conversion]) -> Conversion:
    """The conversion cached under the header's digest, or a new one, which is then cached."""
    folder = cache_directory()
    entry = None if folder is None else folder / "gguf" / _key(digest)
    if entry is not None and (kept := _load(entry)) is not None:
        return kept
    config, tokenizer = convert()
    if entry is not None and tokenizer is not None and can_keep(tokenizer):
        _store(entry, config, tokenizer)
    return config, tokenizer


def _key(digest: str) -> str:
    """The key: the header, and everything that converts it."""
    key = hashlib.sha256(" ".join([digest, *map(version, LIBRARIES)]).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        key.update(source.read_bytes())
    return key.hexdigest()[:32]


def _load(entry: Path) -> Conversion | None:
    """The cached entry, if it is unchanged and can be read."""
    try:
        found = Entry(entry)
        config = json.loads(found.read(CONFIG_FILE))
        found.check(found.under(TOKENIZER_FOLDER))
        return config, read_tokenizer(entry / TOKENIZER_FOLDER)
    except CorruptFileError:
        return None


def _store(entry: Path, config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        text = json.dumps(config)
    except TypeError:  # a value that JSON cannot hold: converted again at the next start
        return
    with keeping("GGUF file's tokenizer"), new_entry(entry) as unfinished:
        save_tokenizer(tokenizer, unfinished / TOKENIZER_FOLDER)
        (unfinished / CONFIG_FILE).write_text(text, encoding="utf-8")
