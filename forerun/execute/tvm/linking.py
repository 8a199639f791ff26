"""Object files as shared libraries, by the C compiler of the machine."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from forerun.errors import ForerunError
from forerun.execute.compilers import c_compiler

LINK = "cc -shared -o step.so step.o -lm"
"""What a user runs, where forerun finds no C compiler."""


def can_link() -> bool:
    """Whether this machine has a C compiler."""
    return c_compiler() is not None


def link(compiled: Path, library: Path) -> None:
    """Makes a shared library of an object file. Raises `ForerunError` without a compiler, or if it refuses."""
    compiler = c_compiler()
    if compiler is None:
        raise ForerunError(
            f"{compiled.name} is not linked yet, and this machine has no C compiler: install one or name it with $CC, "
            f"or run `{LINK}` on another machine of its kind."
        )
    command = [compiler, "-shared", "-o", str(library), str(compiled), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ForerunError(f"{compiler} cannot link {compiled.name}: {done.stderr.strip()[-300:]}")


@contextmanager
def linked(compiled: Path) -> Generator[Path]:
    """Yields a shared library made of an object file; a process that has loaded it keeps it when the file is gone."""
    with tempfile.TemporaryDirectory(prefix="forerun-tvm-") as folder:
        library = Path(folder) / "step.so"
        link(compiled, library)
        yield library
