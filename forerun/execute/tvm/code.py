"""Compiled steps on disk: shared libraries where there is a C compiler, which links them.

Elsewhere it is optimized LLVM IR, which TVM turns into machine code at every start.
"""

import hashlib
import logging
import tempfile
from pathlib import Path

from forerun.codegen.tvm.layout import TvmProgram
from forerun.entries import remove
from forerun.errors import ForerunError
from forerun.execute.tvm.library import Module, TvmError
from forerun.execute.tvm.linking import can_link, linked
from forerun.storage import cache_directory, keeping, write_atomically

LIBRARY, IR = ".so", ".ll"

log = logging.getLogger(__name__)


def compiled_code(program: TvmProgram, cache: bool = True) -> Module:
    """Returns the module of a step's kernels, cached on disk unless `cache` is off."""
    key = program.program.key if cache and program.keeps_code else None
    found = load(key) if key is not None else None
    if found is not None:
        return found
    made = Module.of(program.compile().module)
    if key is None:
        return made
    save(key, made)
    return load(key) or made  # a library need not be compiled once more in memory


def load(key: str) -> Module | None:
    """Returns the module under a key, or None if it is missing or damaged; recompiling replaces a damaged one."""
    folder = cache_directory()
    paths = [] if folder is None else [folder / f"{key}{suffix}" for suffix in (LIBRARY, IR)]
    return next((found for path in paths if (found := _load(path)) is not None), None)


def _load(path: Path) -> Module | None:
    try:
        if not path.is_file():
            return None
        content, _, checksum = path.read_bytes().rpartition(b"\n")
    except OSError:
        return None
    if checksum != _checksum(content):
        return None
    try:
        # A copy of its own: what is loaded is what was checked, and stays as it is whatever becomes of the file.
        with tempfile.TemporaryDirectory(prefix="forerun-tvm-") as folder:
            copy = Path(folder) / path.name
            copy.write_bytes(content)
            return Module.load(copy)
    except TvmError as error:  # complete, but rejected by another LLVM, or removed meanwhile
        log.debug("compiling %s again: %s", path, error)
        return None


def _checksum(content: bytes) -> bytes:
    """Returns the last line of a cached file, a comment of LLVM IR; a library may have anything after its end."""
    return f"; sha256 {hashlib.sha256(content).hexdigest()}".encode()


def _readable(text: str) -> str:
    """Removes a storage class that LLVM prints on private functions but its own parser rejects."""
    return text.replace("define private dllexport", "define private").replace(
        "define internal dllexport", "define internal"
    )


def save(key: str, module: Module) -> None:
    """Caches a module where it can be stored (`storage.keeping`)."""
    folder = cache_directory()
    if folder is None:
        return
    with keeping("compiled code"):
        library = _library(module)
        path = folder / f"{key}{IR if library is None else LIBRARY}"
        if path.is_dir():
            remove(path)
        content = _readable(module.text("ll")).encode() if library is None else library
        write_atomically(path, content + b"\n" + _checksum(content))


def _library(module: Module) -> bytes | None:
    """Returns a module as a shared library, or None where it cannot be linked."""
    if module.library is not None or not can_link():
        return module.library
    with tempfile.TemporaryDirectory(prefix="forerun-tvm-") as folder:
        compiled = Path(folder) / "step.o"
        module.write(compiled, "o")
        try:
            with linked(compiled) as library:
                return library.read_bytes()
        except ForerunError as error:
            log.debug("keeping LLVM IR: %s", error)
            return None
