"""Kernels as files: replaced by the user, cached, and loaded.

`$FORERUN_KERNELS` names a folder of replacements; a file there replaces the generated one of the same name.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from forerun.codegen.program import Source
from forerun.entries import remove
from forerun.errors import InvalidOptionError
from forerun.forking import Turn
from forerun.storage import cache_directory, keeping, write_atomically

INTERPRET = "TRITON_INTERPRET"
OVERRIDES = "FORERUN_KERNELS"
_environment = Turn("loading a kernel")


def overridden(sources: Mapping[str, Source], folder: Path | None = None) -> dict[str, Source]:
    """Returns the sources, replaced where the folder of replacements has a file."""
    given = os.environ.get(OVERRIDES) if folder is None else str(folder)
    if not given:
        return dict(sources)
    path = Path(given).expanduser()
    if not path.is_dir():
        raise InvalidOptionError(f"${OVERRIDES} names {path}, which is not a folder; create it or unset the variable.")
    found: dict[str, Source] = {}
    for name, source in sources.items():
        file = path / f"{name}.py"
        text = file.read_text(encoding="utf-8") if file.is_file() else source.text
        found[name] = replace(source, text=text)
    return found


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
