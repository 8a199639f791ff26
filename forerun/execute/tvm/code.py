"""Compiled steps on disk: optimized LLVM IR, which TVM loads and turns into machine code without a C compiler."""

import hashlib
import logging
from pathlib import Path

from forerun.codegen.tvm.layout import TvmProgram
from forerun.entries import remove
from forerun.execute.tvm.library import Module, TvmError
from forerun.storage import cache_directory, keeping, write_atomically

log = logging.getLogger(__name__)


def compiled_code(program: TvmProgram, cache: bool = True) -> Module:
    """Returns the module of a step's kernels, cached on disk unless `cache` is off."""
    key = program.program.key if cache and program.keeps_code else None
    found = load(key) if key is not None else None
    if found is not None:
        return found
    made = Module.of(program.compile().module)
    if key is not None:
        save(key, made)
    return made


def load(key: str) -> Module | None:
    """Returns the module under a key, or None if it is missing or damaged; recompiling replaces a damaged one."""
    path = _path(key)
    try:
        if path is None or not path.is_file():
            return None
        checksum, _, text = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if checksum.decode("ascii", "replace") != _checksum(text):
        return None
    try:
        return Module.load(path)
    except TvmError as error:  # complete, but rejected by another LLVM, or removed meanwhile
        log.debug("compiling %s again: %s", path, error)
        return None


def _path(key: str) -> Path | None:
    folder = cache_directory()
    return None if folder is None else folder / f"{key}.ll"


def _checksum(text: bytes) -> str:
    """Returns the first line of a cached file, which LLVM reads as a comment."""
    return f"; sha256 {hashlib.sha256(text).hexdigest()}"


def _readable(text: str) -> str:
    """Removes a storage class that LLVM prints on private functions but its own parser rejects."""
    return text.replace("define private dllexport", "define private").replace(
        "define internal dllexport", "define internal"
    )


def save(key: str, module: Module) -> None:
    """Caches a module where it can be stored (`storage.keeping`)."""
    path = _path(key)
    if path is None:
        return
    text = _readable(module.text("ll"))
    with keeping("compiled code"):
        if path.is_dir():
            remove(path)
        write_atomically(path, f"{_checksum(text.encode())}\n{text}")
