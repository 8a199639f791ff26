"""Kernels as files: cached, and loaded."""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forerun.codegen.program import Source
from forerun.entries import remove
from forerun.errors import InvalidOptionError
from forerun.forking import Turn
from forerun.storage import cache_directory, keeping, write_atomically

INTERPRET = "TRITON_INTERPRET"
_environment = Turn("loading a kernel")


@contextmanager
def interpreting(interpret: bool) -> Generator[None]:
    """Sets whether kernels loaded in this context run in Triton's interpreter or are compiled.

    Triton reads the process's environment, so only one thread at a time may be here.
    """
    with _environment:
        before = os.environ.get(INTERPRET)
        os.environ[INTERPRET] = "1" if interpret else "0"
        try:
            yield
        finally:
            if before is None:
                del os.environ[INTERPRET]
            else:
                os.environ[INTERPRET] = before


def _written(place: Path, text: str) -> Path:
    """Returns a file with this text, in the cache, or in a folder of this process if the cache is not writable."""
    kept = cache_directory()
    if kept is not None:
        path = kept / place
        with keeping("kernels' source"):
            if path.is_dir():
                remove(path)
            if not path.is_file() or path.read_bytes() != text.encode():
                write_atomically(path, text)
            return path
    path = _own_folder() / place
    write_atomically(path, text)
    return path


@functools.cache
def _own_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="forerun-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def load(source: Source, interpret: bool) -> Any:
    """Returns a kernel's file as a module. The file is kept under its digest: Triton reads the source it compiles."""
    digest = hashlib.sha256(source.text.encode()).hexdigest()[:16]
    path = _written(Path("triton", digest, f"{source.name}.py"), source.text)
    spec = importlib.util.spec_from_file_location(f"forerun_kernel_{digest}_{source.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with interpreting(interpret):
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise InvalidOptionError(
                f"The kernel {source.name} cannot be loaded ({error}); correct its file."
            ) from error
    return module
