"""Compiled models on disk: what `compile` makes of a path, so that the next start neither traces nor packs weights.

A folder a model, named by a digest of all that it depends on: the model's files, the options, the machine, the versions
of the libraries and forerun's own sources. Folders are written under another name and renamed. The one that was used
longest ago makes room for a new one where all together exceed `$FORERUN_CACHE_GB` (8 by default, 0 to keep none).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from forerun.errors import CorruptFileError, InvalidOptionError
from forerun.frontends.huggingface import load_tokenizer
from forerun.runtime.executable import Executable
from forerun.storage import cache_directory

GIGABYTE = 10**9
ROOM = 8.0
"""Gigabytes that all folders together may take, unless `$FORERUN_CACHE_GB` says otherwise."""
ENDS = 1 << 16
"""Bytes at both ends of a model's file that its digest reads; size and time of change stand for the rest."""
ABANDONED = 3600.0
"""Seconds after which an unfinished folder is taken for one whose writer has died."""
LIBRARIES = ("torch", "apache-tvm", "transformers", "tokenizers", "gguf")
TOKENIZER, MODEL, UNFINISHED = "tokenizer", "model.json", ".unfinished-"


@dataclass(frozen=True)
class Built:
    """A model behind all stages that no strategy changes."""

    executable: Executable
    tokenizer: PreTrainedTokenizerBase | None
    eos_token_ids: tuple[int, ...]


def folder_for(path: Path, **options: object) -> Path | None:
    """Where the model of a path is kept, if under these options it is; None where nothing is to be kept."""
    if not path.exists() or _room() == 0:
        return None
    from forerun.codegen.tvm.target import Machine  # TVM takes seconds to import: only this target needs it

    digest = hashlib.sha256()
    said = [repr(sorted(options.items())), str(Machine.host()), torch.__version__, *map(version, LIBRARIES)]
    for text in [*said, *_sources(), *_identity(path)]:
        digest.update(text.encode() + b"\0")
    return _folders() / digest.hexdigest()[:32]


def load(folder: Path) -> Built | None:
    """What was kept in a folder; None where there is none, or none that is whole."""
    from forerun.codegen.tvm import artifact

    if not folder.is_dir():
        return None
    try:
        executable = artifact.load(folder)
        read = json.loads((folder / MODEL).read_text(encoding="utf-8"))
        tokenizer = load_tokenizer(folder / TOKENIZER) if (folder / TOKENIZER).is_dir() else None
        os.utime(folder)
    except (CorruptFileError, OSError, ValueError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return Built(executable, tokenizer, tuple(read["eos_token_ids"]))


def save(folder: Path, built: Built) -> None:
    """Keep a model for the next start. A full disk is not an error: the next start compiles again."""
    from forerun.codegen.tvm import TvmExecutable, artifact

    assert isinstance(built.executable, TvmExecutable)
    if not _make_room(built.executable.weight_bytes):
        return
    with contextlib.suppress(OSError), _renamed(folder) as unfinished:
        artifact.save(unfinished, built.executable)
        if built.tokenizer is not None:
            built.tokenizer.save_pretrained(unfinished / TOKENIZER)
        (unfinished / MODEL).write_text(json.dumps({"eos_token_ids": built.eos_token_ids}), encoding="utf-8")


def _folders() -> Path:
    return cache_directory() / "models"


def _room() -> int:
    """Bytes that may be kept. Raises `InvalidOptionError`."""
    text = os.environ.get("FORERUN_CACHE_GB", str(ROOM))
    try:
        room = float(text)
    except ValueError:
        room = -1.0
    if not 0 <= room < float("inf"):
        raise InvalidOptionError(f"FORERUN_CACHE_GB is {text!r}: give a number of gigabytes, 0 to keep no models.")
    return int(room * GIGABYTE)


def _make_room(needed: int) -> bool:
    """Remove the folders used longest ago until `needed` bytes more may be kept; False where they never may."""
    for each in _folders().glob(f"{UNFINISHED}*"):
        if time.time() - each.stat().st_mtime > ABANDONED:
            shutil.rmtree(each, ignore_errors=True)
    kept = sorted(_folders().glob("[!.]*"), key=lambda each: each.stat().st_mtime)
    sizes = [sum(file.stat().st_size for file in each.rglob("*") if file.is_file()) for each in kept]
    while kept and sum(sizes) + needed > _room():
        shutil.rmtree(kept.pop(0), ignore_errors=True)
        del sizes[0]
    return needed <= _room()


@contextlib.contextmanager
def _renamed(folder: Path) -> Generator[Path]:
    """A new folder that gets its name when its content is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=UNFINISHED))
    try:
        yield unfinished
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _sources() -> Iterable[str]:
    """forerun's own files: a changed pass or template makes another model."""
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        yield str(path.relative_to(root))
        yield hashlib.sha256(path.read_bytes()).hexdigest()


def _identity(path: Path) -> Iterable[str]:
    """What tells a model's files from others, without reading all of them."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for each in files:
        found = each.stat()
        with each.open("rb") as file:
            head = file.read(ENDS)
            file.seek(max(0, found.st_size - ENDS))
            ends = hashlib.sha256(head + file.read(ENDS)).hexdigest()
        yield f"{each.name if path.is_file() else each.relative_to(path)} {found.st_size} {found.st_mtime_ns} {ends}"
