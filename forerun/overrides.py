"""Kernels other than those that the code generator would write: a user's files, and what `forerun tune` has found.

`kernel_overrides` of `compile`, or `$FORERUN_KERNELS`, names a folder of files as `forerun dump` writes them to
`kernels/`. What was found by tuning is kept in the cache, by the key of a step's code, which depends on the machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forerun.codegen.backends import BACKENDS, Tuning, named
from forerun.codegen.schedule import nearest
from forerun.errors import InvalidOptionError
from forerun.progress import Progress
from forerun.records import restored
from forerun.runtime.certify_kernel import certify_kernel
from forerun.storage import cache_directory, expanded, keeping, say_once, write_atomically

FOLDER = "FORERUN_KERNELS"
LARGEST = 1 << 20
"""Bytes of a kernel's file."""


@dataclass(frozen=True)
class Tuned:
    """What tuning has found for a step: texts by file name, and what they bring."""

    key: str  # of the generated code
    model: str
    target: str
    machine: str
    files: Mapping[str, str]
    gains: Mapping[str, float]  # of each file: how many times as fast as generated
    changes: Mapping[str, str]  # in words


def given_files(folder: str | os.PathLike[str] | None, target: str) -> dict[str, str]:
    """Returns the files of a folder of overrides that a target's kernels can be edited by; by default of the folder
    that `$FORERUN_KERNELS` names, which may also be meant for another target, or none.

    Raises `InvalidOptionError` if there is no such folder, or if nothing in it is of use.
    """
    told, everywhere = "kernel_overrides", folder is None
    if folder is None:
        folder, told = os.environ.get(FOLDER) or None, f"${FOLDER}"
    if folder is None:
        return {}
    path = expanded(folder)
    if not path.is_dir():
        raise InvalidOptionError(f"{told} names {path}, which is not a folder: create it, or leave it out.")
    tuning = BACKENDS[target].tuning
    if tuning is None and everywhere:
        return {}
    if tuning is None:
        raise InvalidOptionError(f"The kernels of the {target} target cannot be edited: leave out {told}.")
    found = {each.name: read_file(each) for each in sorted(path.glob(f"*{tuning.suffix}")) if each.is_file()}
    if not found and not everywhere:
        raise InvalidOptionError(
            f"{told} names {path}, which has no file NAME{tuning.suffix}: the kernels of the {target} target are "
            "edited by such files, as forerun dump writes them."
        )
    return found


def read_file(path: Path) -> str:
    """Returns the text of a kernel's file. Raises `InvalidOptionError`."""
    try:
        if path.stat().st_size > LARGEST:
            raise InvalidOptionError(f"{path} is too large for a kernel's file: give one of at most {LARGEST} bytes.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8 text"
        raise InvalidOptionError(f"{path} cannot be read ({why}): give a kernel's file.") from error


def with_overrides(program: Any, target: str, files: Mapping[str, str]) -> Any:
    """Returns a program with the user's kernels, and with the tuned ones of all others.

    Raises `InvalidOptionError` for a file of no kernel, and for what a kernel cannot be.
    """
    tuning = BACKENDS[target].tuning
    if tuning is None:
        return program
    generated: Mapping[str, str] = named(tuning.files)(program)
    for name in files:
        if name not in generated:
            kernel, known = name.removesuffix(tuning.suffix), [each.removesuffix(tuning.suffix) for each in generated]
            raise InvalidOptionError(
                f"The step has no kernel {kernel!r} that {name} could be of{nearest(kernel, known)}; forerun dump "
                "writes the files of those that it has."
            )
    changed = {name: text for name, text in files.items() if text != generated[name]}
    own = with_tuned(program, tuning, {*files})
    return named(tuning.edited)(own, changed) if changed else own


def with_tuned(program: Any, tuning: Tuning, but: Set[str]) -> Any:
    """Returns a program with what tuning has found for it, but for some files. What does not fit it is dropped."""
    tuned = tuned_for(program.program.generated)
    texts = {} if tuned is None else {name: text for name, text in tuned.files.items() if name not in but}
    if tuned is None or not texts:
        return program
    try:
        return named(tuning.edited)(program, texts)
    except (InvalidOptionError, KeyError) as error:
        say_once(f"What was tuned for {tuned.model} is dropped, as it does not fit ({error}).")
        forget_tuned(tuned.key)
        return program


def check_edits(program: Any, target: str, executable: Any, files: Mapping[str, str]) -> None:
    """Checks the files that differ from what a program has, if edits of the target's kernels may change bits."""
    tuning = BACKENDS[target].tuning
    if tuning is None or tuning.trusted:
        return
    generated = named(tuning.files)(program)
    for file, text in files.items():
        name = file.removesuffix(tuning.suffix)
        if text != generated[file] and name in program.program.sources:  # others run around a step
            certify_kernel(named(tuning.versions)(program, executable, name, ["", text]), 1, name)


def is_current(executable: Any, target: str, kernels: Mapping[str, str]) -> bool:
    """Whether a kept executable has the kernels that it would be compiled with now, and no other tuned ones.

    kernels     the texts of the user's files; a kept model was compiled with the same
    """
    tuning, step = BACKENDS[target].tuning, getattr(executable, "step", None)
    if tuning is None or step is None:
        return True
    tuned = tuned_for(step.generated)
    wanted = {} if tuned is None else {name: tuned.changes[name] for name in tuned.files if name not in kernels}
    own = {f"{name}{tuning.suffix}": words for name, words in step.overrides.items()}
    return wanted == {name: words for name, words in own.items() if name not in kernels}


def tell_overrides(executable: Any, progress: Progress) -> None:
    """Shows, as a stage of the progress, which kernels are not as generated."""
    if overrides := getattr(executable, "overrides", None):
        changed = "; ".join(f"{name}: {words}" for name, words in overrides.items())
        count = "1 kernel is" if len(overrides) == 1 else f"{len(overrides)} kernels are"
        with progress.stage(f"{count} not as generated ({changed})"):
            pass


# --- what tuning has found


def folder_of_tuned() -> Path | None:
    """Returns the folder in which it is kept, if there is one."""
    directory = cache_directory()
    return None if directory is None else directory / "tuned"


def tuned_for(key: str) -> Tuned | None:
    """Returns what was found for a step's code; None if nothing was, or if its file is damaged."""
    folder = folder_of_tuned()
    return None if folder is None or not key else _read(folder / f"{key}.json")


def all_tuned() -> list[Tuned]:
    """Returns everything that was found on this machine or with this cache."""
    folder = folder_of_tuned()
    files: Sequence[Path] = [] if folder is None or not folder.is_dir() else sorted(folder.glob("*.json"))
    return [each for each in map(_read, files) if each is not None]


def keep_tuned(tuned: Tuned) -> None:
    """Keeps what was found for a step, in place of what was found before; nothing is kept if nothing was found."""
    folder = folder_of_tuned()
    if folder is None:
        return
    with keeping("tuned kernels"):
        if tuned.files:
            write_atomically(folder / f"{tuned.key}.json", json.dumps(asdict(tuned), indent=1))
        else:
            (folder / f"{tuned.key}.json").unlink(missing_ok=True)


def forget_tuned(key: str | None = None) -> int:
    """Drops what was found for a step, or for all; returns the number of kernels."""
    chosen = [each for each in all_tuned() if key is None or each.key == key]
    if (folder := folder_of_tuned()) is not None:
        for each in chosen:
            (folder / f"{each.key}.json").unlink(missing_ok=True)
    return sum(len(each.files) for each in chosen)


def _read(path: Path) -> Tuned | None:
    try:
        found = restored(Tuned, json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    whole = found is not None and found.files.keys() == found.changes.keys() == found.gains.keys()
    return found if whole else None
