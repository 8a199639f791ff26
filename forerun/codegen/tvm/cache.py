"""Compiled steps on disk: optimized LLVM IR, which TVM loads and turns into machine code without a C compiler."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from forerun.codegen.tvm.program import build, step_module
from forerun.codegen.tvm.target import Machine
from forerun.codegen.tvm.untyped import tvm
from forerun.entries import remove
from forerun.storage import cache_directory, keeping, write_atomically

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent


def source_digest() -> str:
    """A digest of the templates' own sources: a changed template is another key."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def key_of(machine: Machine, parts: list[str]) -> str:
    """The key of everything a compiled step depends on."""
    digest = hashlib.sha256()
    for text in (tvm.__version__, str(machine), source_digest(), *parts):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:32]


def load(key: str) -> Any | None:
    """The module under a key, or None where there is none that is whole; compiling it again replaces a damaged one."""
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
        return tvm.runtime.load_module(str(path))
    except Exception as error:  # whole, and refused by another LLVM, or removed meanwhile
        log.debug("compiling %s again: %s", path, error)
        return None


def _path(key: str) -> Path | None:
    folder = cache_directory()
    return None if folder is None else folder / f"{key}.ll"


def _checksum(text: bytes) -> str:
    """The first line of a kept file, a comment to LLVM."""
    return f"; sha256 {hashlib.sha256(text).hexdigest()}"


def _readable(text: str) -> str:
    """LLVM prints a storage class on private functions that its own parser refuses."""
    return text.replace("define private dllexport", "define private").replace(
        "define internal dllexport", "define internal"
    )


def save(key: str, module: Any) -> None:
    """Keep a module where it can be kept (`storage.keeping`)."""
    path = _path(key)
    if path is None:
        return
    text = _readable(module.inspect_source("ll"))
    with keeping("compiled code"):
        if path.is_dir():
            remove(path)
        write_atomically(path, f"{_checksum(text.encode())}\n{text}")


def compile_kernels(kernels: dict[str, Any], machine: Machine, key: str | None) -> Any:
    """Compile, and keep under the key where one is given."""
    module = build(step_module(kernels), machine.target)
    if key is not None:
        save(key, module)
    return module
