"""Checks of a model directory before anything in it is loaded, with one sentence for each fault."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from forerun.errors import CorruptFileError, ForerunError, NotAModelError, SourceNotFoundError, first_sentence

CONFIG = "config.json"
MLIR = ".mlir"
"""How the name of a text file of MLIR ends."""
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tekken.json", "added_tokens.json", "special_tokens_map.json"),
)
"""By these a directory is known to hold a tokenizer."""
TRUST = "trust_remote_code"
"""How transformers says that it would have to run a model's own code."""


def existing(path: str | os.PathLike[str]) -> Path:
    """The path of a directory or a regular file that exists, `~` expanded. Raises `SourceNotFoundError`,
    or `NotAModelError` for a pipe, a device or a socket, which is not opened."""
    try:
        found = Path(path).expanduser()
        kind = found.stat().st_mode
    except (OSError, RuntimeError, ValueError) as error:  # no such user, a NUL in the name, no permission, ...
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({_reason(error)})"
        raise SourceNotFoundError(
            f"{os.fspath(path)!s} {reason}: "
            f"give the path of a model directory, or of a GGUF, ONNX or .mlir file, on this machine."
        ) from error
    if not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
        raise NotAModelError(
            f"{found} is a pipe, a socket or a device: give a model directory, or a GGUF, ONNX or .mlir file."
        )
    return found


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or first_sentence(error)


def holds_tokenizer(path: Path) -> bool:
    """Whether a model directory, a GGUF file or the folder of an ONNX model holds a tokenizer; an .mlir file has none.

    True for a file that cannot be read as a model, which opening it explains.

    Raises `NotAModelError` or `CorruptFileError` for a directory without a model.
    """
    from forerun.frontends.gguf_header import read_header
    from forerun.frontends.onnx_place import folder_of, is_onnx, onnx_in

    graph = onnx_in(path) if path.is_dir() else path if is_onnx(path) else None
    if graph is not None:
        return bool(tokenizer_files(folder_of(graph)))
    if path.is_dir():
        check_directory(path)
        return bool(tokenizer_files(path))
    if path.suffix == MLIR:
        return False

    try:
        return any(name.startswith("tokenizer.ggml.") for name in read_header(path).metadata)
    except (ForerunError, OSError):
        return True


def check_directory(path: Path) -> None:
    """Raise `NotAModelError` or `CorruptFileError` for a directory without a model that can be loaded."""
    config = path / CONFIG
    if not config.is_file():
        ggufs = sorted(path.glob("*.gguf"))
        other = "give a directory written by save_pretrained, or a GGUF, ONNX or .mlir file"
        remedy = f"pass the file {ggufs[0]}" if ggufs else other
        raise NotAModelError(f"{path} holds no config.json: {remedy}.")
    read_json(config)
    weights = [*path.glob("*.safetensors"), *path.glob("*.bin"), *path.glob("*.pt")]
    shards = set(shard_names(path))
    if not weights and not shards:
        raise NotAModelError(f"{path} has a config.json but no weights: add its model.safetensors.")
    if missing := sorted(name for name in shards if not (path / name).is_file()):
        raise CorruptFileError(f"{path} lacks {missing[0]}, which its index names: download the model again.")
    if empty := [file for file in weights if file.stat().st_size == 0]:
        raise CorruptFileError(f"{empty[0]} is empty: download or save the model again.")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `CorruptFileError` naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not valid JSON ({first_sentence(error)}): restore the file.") from error


def shard_names(path: Path) -> Iterator[str]:
    """The weight files that the index files of a directory name, each inside the directory.

    Raises `CorruptFileError` for an index that is damaged or that points outside.
    """
    for index in sorted(path.glob("*.index.json")):
        read = read_json(index)
        table = read.get("weight_map") if isinstance(read, Mapping) else None
        if not isinstance(table, Mapping) or not all(isinstance(each, str) for each in table.values()):
            raise CorruptFileError(f"{index} has no weight_map of file names: download the model again.")
        for name in dict.fromkeys(table.values()):
            if leaves(name):
                raise CorruptFileError(
                    f"{index} points at {name!r}, outside its directory, which no model needs: do not trust this "
                    f"model, or put the file next to the index and name it there."
                )
            yield name


def leaves(name: str) -> bool:
    """Whether a name leads out of its directory, under the rules of any system."""
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    return ".." in parts or PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor) or "\0" in name


def tokenizer_files(path: Path) -> list[Path]:
    """The tokenizer's files in a directory, JSON files among them checked; `CorruptFileError` names a damaged one."""
    found = [path / name for name in TOKENIZER_FILES if (path / name).is_file()]
    for each in found:
        if each.stat().st_size == 0:
            raise CorruptFileError(f"{each} is empty: restore the file.")
        if each.suffix == ".json":
            read_json(each)
    return found


def code_file(path: Path) -> str | None:
    """The file of Python code that a directory's configuration wants to run, by its `auto_map`, or None."""
    for name in (CONFIG, "tokenizer_config.json", "generation_config.json"):
        read = read_json(path / name) if (path / name).is_file() else None
        table = read.get("auto_map") if isinstance(read, Mapping) else None
        for value in table.values() if isinstance(table, Mapping) else ():
            first = next((each for each in value if each), None) if isinstance(value, list) else value
            if isinstance(first, str):
                return f"{first.rpartition('--')[2].rpartition('.')[0].replace('.', '/')}.py"
    return None


def require_no_code(path: Path, error: Exception, trusted: bool) -> None:
    """`NotAModelError` where a directory cannot be loaded because its own code was not run."""
    file = None if trusted or TRUST not in str(error) else code_file(path)
    if file is not None:
        raise NotAModelError(
            f"{path} needs its own code in {file}, which forerun does not run by default: read that file, and pass "
            f"trust_remote_code=True (--trust-remote-code) if you trust it."
        ) from error
