"""Compiled models on disk: what `compile` makes from a path, so that the next start neither traces nor packs weights.

Each model has a folder, named by a digest of all that it depends on: every byte of the model's files, the options, the
machine, the library versions and forerun's own sources. The least recently used folders make room for a new one if
together they exceed `$FORERUN_CACHE_GB` (8 by default, 0 to keep none).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun import entries
from forerun.codegen.backends import Kept, named
from forerun.entries import Entry
from forerun.errors import CorruptFileError, InvalidOptionError
from forerun.identity import identity
from forerun.installed import versions
from forerun.runtime.executable import Executable
from forerun.storage import cache_directory, keeping

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GIGABYTE = 10**9
ROOM = 8.0
"""The gigabytes that all folders together may take, unless `$FORERUN_CACHE_GB` says otherwise."""
LIBRARIES = (
    *("apache-tvm", "apache-tvm-ffi", "gguf", "jinja2", "networkx", "numpy", "rich", "safetensors", "tokenizers"),
    *("onnx", "pyyaml", "torch", "torch-mlir", "transformers", "xdsl"),
    *("accelerate", "kernels", "peft", "protobuf", "sentencepiece", "tiktoken"),
)
"""forerun's dependencies, and packages that its frontends and transformers use if installed."""
VARIABLES = ("ATEN_", "DNNL_", "FORERUN_", "MKL_", "ONEDNN_", "TORCH_", "TRANSFORMERS_", "TVM_")
"""Prefixes of environment variables that may change what is compiled or how constants are evaluated."""
HARMLESS = (
    *("FORERUN_CACHE_DIR", "FORERUN_CACHE_GB", "FORERUN_KERNELS", "FORERUN_LOG", "FORERUN_THREADS"),
    *("TVM_NUM_THREADS", "TRANSFORMERS_VERBOSITY"),
)
"""Variables that change nothing; of the files that FORERUN_KERNELS names, the texts are among the options."""
TOKENIZER, MODEL = "tokenizer", "model.json"


@dataclass(frozen=True)
class Built:
    """A model after all stages that do not depend on the strategy."""

    executable: Executable
    tokenizer: PreTrainedTokenizerBase | None
    eos_token_ids: tuple[int, ...]
    capped: str | None = None  # why it has fewer positions than requested
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])  # keywords of `generate` that apply by default
    times: Path | None = None  # the file that remembers how long steps take here, if the model is kept


def folder_for(path: Path, options: Mapping[str, object], kept: Kept) -> Path | None:
    """Returns the folder in which a path's model is kept under these options; None if it is not to be kept.

    Names are equal only if all options and all bytes of the model's files are.
    """
    directory, told = cache_directory(), _told(options)
    if _room() == 0 or directory is None or told is None:
        return None
    try:
        files = identity(path)
    except OSError:  # loading the model reports what is wrong with its files
        return None
    if files is None:
        return None
    digest = hashlib.sha256()
    for text in [told, str(named(kept.machine)()), *_surroundings(), *_sources(), *files]:
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return directory / "models" / digest.hexdigest()[:32]


def times_file(folder: Path, threads: int | None) -> Path:
    """Returns the file that remembers the step times of the model kept in a folder, for a number of threads."""
    return folder.with_name(f"{folder.name}-{threads or 'default'}.json")


def load(
    folder: Path, kept: Kept, threads: int | None = None, current: Callable[[Any], bool] = lambda executable: True
) -> Built | None:
    """Returns the model kept in a folder; None if it is missing or damaged, or if its executable is not current."""
    try:
        entry = Entry(folder)
        read = json.loads(entry.read(MODEL))
        ends, capped, defaults = tuple(read["eos_token_ids"]), read["capped"], dict(read["defaults"])
        with ThreadPoolExecutor(1) as pool:  # meanwhile the executable waits for the disk and for LLVM
            reading = pool.submit(_tokenizer, entry)
            executable = named(kept.load)(entry, threads)
            tokenizer = reading.result()
    except (CorruptFileError, KeyError, TypeError, ValueError):
        return None
    if not current(executable):
        return None
    with contextlib.suppress(OSError):  # a read-only folder keeps its time
        os.utime(folder)
    return Built(executable, tokenizer, ends, capped, defaults, times_file(folder, threads))


def _tokenizer(entry: Entry) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer of an entry. Raises `CorruptFileError`."""
    from forerun.frontends.kept_tokenizer import read_tokenizer  # imports transformers, which takes a second

    files = entry.under(TOKENIZER)
    entry.check(files)
    return read_tokenizer(entry.folder / TOKENIZER) if files else None


def save(folder: Path, built: Built, kept: Kept) -> None:
    """Keeps a model for the next start, if it can be stored (`storage.keeping`)."""
    from forerun.frontends.kept_tokenizer import can_keep, save_tokenizer

    if built.tokenizer is not None and not can_keep(built.tokenizer):
        return
    if not _make_room(folder.parent, named(kept.size)(built.executable)):
        return
    with keeping("compiled model"), entries.new_entry(folder) as unfinished:
        named(kept.save)(unfinished, built.executable)
        if built.tokenizer is not None:
            save_tokenizer(built.tokenizer, unfinished / TOKENIZER)
        plain = {"eos_token_ids": built.eos_token_ids, "capped": built.capped, "defaults": built.defaults}
        (unfinished / MODEL).write_text(json.dumps(plain), encoding="utf-8")


def _told(options: Mapping[str, object]) -> str | None:
    """Returns the options as text; None if one has a value that text cannot fully represent."""

    def plain(value: Any) -> Any:
        if hasattr(value, "to_dict"):  # a transformers config
            return {type(value).__name__: value.to_dict()}
        if is_dataclass(value):
            return {type(value).__name__: vars(value)}
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        raise TypeError(f"{value!r} as an option")

    try:
        return json.dumps(dict(options), sort_keys=True, default=plain)
    except (TypeError, ValueError):
        return None


def _surroundings() -> Iterable[str]:
    """Yields the libraries, and the environment as far as it affects what is compiled."""
    yield sys.version
    installed = versions(LIBRARIES)
    for name in LIBRARIES:
        yield f"{name} {installed[name]}" if name in installed else f"no {name}"
    for name, value in sorted(os.environ.items()):
        if name.startswith(VARIABLES) and name not in HARMLESS:
            yield f"{name}={value}"


def _room() -> int:
    """Returns the bytes that may be kept. Raises `InvalidOptionError`."""
    text = os.environ.get("FORERUN_CACHE_GB", str(ROOM))
    try:
        room = float(text)
    except ValueError:
        room = -1.0
    if not 0 <= room < float("inf"):
        raise InvalidOptionError(f"FORERUN_CACHE_GB is {text!r}: give a number of gigabytes, 0 to keep no models.")
    return int(room * GIGABYTE)


def _make_room(models: Path, needed: int) -> bool:
    """Removes the least recently used folders until `needed` more bytes may be kept; returns False if they never may.

    Other processes may write, use and remove folders meanwhile: a removed folder takes no room.
    """
    room = _room()
    if needed > room:
        return False
    names: list[str] = []
    with contextlib.suppress(OSError):  # there may be none yet
        names = [each for each in os.listdir(models) if not each.startswith(".")]
    present = sorted((*_used(models / each), models / each) for each in names)
    total = needed + sum(size for _, size, _ in present)
    for _, size, folder in present:
        if total <= room:
            break
        with contextlib.suppress(OSError):
            entries.remove(folder)
        total -= size
    return True


def _used(folder: Path) -> tuple[float, int]:
    """Returns when a folder was last used, and its size in bytes."""
    times, size = [0.0], 0
    with contextlib.suppress(OSError):
        times.append(folder.stat().st_mtime)
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += Path(where, name).stat().st_size
    return times[-1], size


def _sources() -> Iterable[str]:
    """Yields forerun's own files: a changed pass or template makes a different model."""
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        yield str(path.relative_to(root))
        yield hashlib.sha256(path.read_bytes()).hexdigest()
