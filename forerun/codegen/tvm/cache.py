"""Compiled steps on disk: optimized LLVM IR, which TVM loads and turns into machine code without a C compiler."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from forerun.codegen.tvm.program import build, step_module
from forerun.codegen.tvm.target import Machine
from forerun.codegen.tvm.untyped import tvm
from forerun.storage import cache_directory, write_atomically

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
    """The module under a key, or None where there is none that loads; a broken file makes room for a new one."""
    path = cache_directory() / f"{key}.ll"
    if not path.is_file():
        return None
    try:
        return tvm.runtime.load_module(str(path))
    except Exception:
        path.unlink(missing_ok=True)
        return None


def _readable(text: str) -> str:
    """LLVM prints a storage class on private functions that its own parser refuses."""
    return text.replace("define private dllexport", "define private").replace(
        "define internal dllexport", "define internal"
    )


def save(key: str, module: Any) -> None:
    """Keep a module. A full disk is not an error: the next start compiles again."""
    with contextlib.suppress(OSError):
        write_atomically(cache_directory() / f"{key}.ll", _readable(module.inspect_source("ll")))


def compile_kernels(kernels: dict[str, Any], machine: Machine, key: str | None) -> Any:
    """Compile, and keep under the key where one is given."""
    module = build(step_module(kernels), machine.target)
    if key is not None:
        save(key, module)
    return module
