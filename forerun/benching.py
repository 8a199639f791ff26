"""What `forerun bench` and `forerun tune` do: measure kernels, compare edited ones with generated ones, and search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from forerun.build import OPENING, Opening, bound, emit, lower, warn_of_length
from forerun.codegen.backends import BACKENDS, Tuning, named
from forerun.codegen.schedule import nearest
from forerun.compile_options import resolve_arithmetic
from forerun.errors import InvalidOptionError
from forerun.overrides import Tuned, keep_tuned, read_file, tuned_for
from forerun.progress import Progress
from forerun.runtime.certify_kernel import certify_kernel
from forerun.runtime.executable import Rows
from forerun.runtime.trial import Trial, require_rows
from forerun.tuning.roofline import Group, Line, Peaks, groups, lines, measured
from forerun.tuning.search import Found, Race, race
from forerun.tuning.tune import shares, tunable, tune


@dataclass(frozen=True)
class Options:
    """What is measured: steps of some numbers of rows, with `context` tokens cached, in turns."""

    rows: tuple[int, ...] = (1, 8, 32)
    context: int = 128
    turns: int = 15


@dataclass(frozen=True)
class Generated:
    """A model's program as it is generated, and its executable: without edited and tuned kernels."""

    program: Any
    executable: Any
    tuning: Tuning


def require_tuning(target: str) -> Tuning:
    """Returns how a back end's kernels are measured. Raises `InvalidOptionError` if they cannot be."""
    tuning = BACKENDS[target].tuning
    if tuning is None:
        able = " and ".join(sorted(name for name, each in BACKENDS.items() if each.tuning is not None))
        raise InvalidOptionError(f"The kernels of the {target} target are not measured: use one of {able}.")
    return tuning


def generated(
    source: Any,
    target: str,
    dtype: str,
    max_length: int | None,
    progress: Progress,
    opening: Opening = OPENING,
    arithmetic: str = "auto",
) -> Generated:
    """Compiles a model for its kernels to be measured beside others."""
    BACKENDS[target].require_usable()
    narrowest = resolve_arithmetic(arithmetic, target, dtype)
    lowered = lower(source, dtype, max_length, progress=progress, opening=opening, arithmetic=narrowest)
    warn_of_length(lowered.capped)
    with progress.stage("kernels"):
        program = emit(lowered, target, dtype)
        return Generated(program, bound(program, target), require_tuning(target))


def chosen_groups(program: Any, name: str | None) -> list[Group]:
    """Returns the kernels of a step that a name means, of a kernel or of one of its sources; all without a name.

    Raises `InvalidOptionError` if it means none.
    """
    found = groups(program)
    if name is None:
        return found
    exact = [each for each in found if name in (each.name, *each.sources) or any(k.name == name for k in each.kernels)]
    if not exact:
        known = dict.fromkeys([*(each.name for each in found), *(source for each in found for source in each.sources)])
        raise InvalidOptionError(
            f"The step has no kernel {name!r}{nearest(name, known)} forerun bench lists those that it has."
        )
    return exact


def bench(
    executable: Any, target: str, name: str | None, options: Options, progress: Progress
) -> tuple[list[Line], Peaks, int]:
    """Returns a line for each kernel and row count, the machine's peaks, and the tokens that were in the cache."""
    tuning, program = require_tuning(target), executable.step
    chosen = chosen_groups(program, name)
    trial, steps = trial_steps(executable, options)
    rounds, peaks = measured(tuning, executable, trial.state, steps, options.turns, progress)
    return lines(program, steps, rounds, peaks, chosen), peaks, trial.context


def trial_steps(executable: Any, options: Options) -> tuple[Trial, dict[int, Rows]]:
    """Returns a state with a context, and steps of random rows of each count."""
    rows = require_rows(options.rows, executable)
    trial = Trial(executable, options.context)
    trial.begin()
    return trial, {count: trial.rows(count) for count in rows}


def edited_source(model: Generated, name: str | None, path: Path) -> tuple[str, str]:
    """Returns which kernel's source a file edits, and its text.

    That is the source that is named; else, among the sources of the named kernel, the one whose name the file has, or
    the only one that can be edited. Raises `InvalidOptionError`.
    """
    text, suffix, program = read_file(path), model.tuning.suffix, model.program.program
    if path.suffix != suffix:
        raise InvalidOptionError(
            f"{path.name} does not end in {suffix}: the kernels of the {program.target} target are edited by such "
            "files, as forerun dump writes them."
        )
    chosen = chosen_groups(program, path.stem if name is None else name)
    able = tunable(model.tuning, model.program, chosen)
    for each in (name, path.stem):
        if each in able:
            return str(each), text
    if len(able) != 1:
        which = f"one of {', '.join(able)}" if able else "another kernel"
        raise InvalidOptionError(
            f"{path.name} does not say which source of the kernel {name} it edits: give --kernel {which}."
            if able
            else f"The kernel {name} has no file that can be edited: give --kernel {which}."
        )
    return able[0], text


def compare(model: Generated, source: str, text: str, options: Options, progress: Progress) -> tuple[Race, int]:
    """Checks an edited kernel, then measures it beside the generated one; returns the race and the rows compared.

    Raises `InvalidOptionError` if the kernel cannot be, or if it breaks the contract.
    """
    trial, steps = trial_steps(model.executable, options)
    with progress.stage("compile both"):
        versions = named(model.tuning.versions)(model.program, model.executable, source, ["", text])
    with progress.stage("check bits"):
        compared = certify_kernel(versions, 1, source)
    with progress.counted("measure") as counted:
        return race(versions, 2, trial.state, steps, options.turns, counted), compared


def tuned(
    model: Generated, name: str | None, label: str, options: Options, budget: float, progress: Progress
) -> tuple[dict[str, Found], Tuned]:
    """Searches for faster kernels, and keeps them for later compiles on this machine."""
    tuning, program, executable = model.tuning, model.program, model.executable
    if tuning.candidates is None or tuning.changes is None:
        raise InvalidOptionError(
            f"The {program.program.target} target measures its launches when they first occur and keeps its choices "
            "(FORERUN_TUNE): there is nothing else to tune."
        )
    chosen = chosen_groups(program.program, name)
    names = tunable(tuning, program, chosen)
    if not names:
        raise InvalidOptionError(f"The kernel {name} has only one schedule: tune another one.")
    trial, steps = trial_steps(executable, options)
    kernels = shares(tuning, executable, trial.state, steps, chosen, [name] if name in names else names)
    every = tune(
        tuning, program, executable, kernels, trial, steps, budget, lambda each: progress.stage(f"tune {each}")
    )
    found = {each: own for each, own in every.items() if own is not None}
    searched = {f"{each}{tuning.suffix}" for each in every}
    before = tuned_for(program.program.generated)
    changes = named(tuning.changes)
    texts = {f"{each}{tuning.suffix}": own.text for each, own in found.items()}
    gains = {f"{each}{tuning.suffix}": own.gain for each, own in found.items()}
    words = {file: changes(program, file, text) for file, text in texts.items()}
    if before is not None:
        kept = [file for file in before.files if file not in searched]
        texts |= {file: before.files[file] for file in kept}
        gains |= {file: before.gains[file] for file in kept}
        words |= {file: before.changes[file] for file in kept}
    machine = str(named(tuning.machine)())
    result = Tuned(program.program.generated, label, program.program.target, machine, texts, gains, words)
    keep_tuned(result)
    return found, result


# --- tables


def print_lines(found: Sequence[Line], peaks: Peaks, console: Console) -> None:
    """Prints a line for each kernel and row count, and one for each step."""
    table = Table(
        "rows", Column("kernel", no_wrap=True), "kernels", "us each", "us a step", "MB each", "GB/s", "bound us",
        "of bound", "bound by",
    )  # fmt: skip
    for rows in dict.fromkeys(each.rows for each in found):
        own = [each for each in found if each.rows == rows]
        for each in own:
            spent = f"{each.seconds * each.kernels * 1e6:.1f}"
            moved, rate = f"{each.bytes / 1e6:.3f}", f"{each.rate / 1e9:.1f}"
            bound_ = f"{each.bound * 1e6:.1f}", f"{each.achieved:.2f}", each.limit
            table.add_row(
                str(rows), each.kernel, str(each.kernels), f"{each.seconds * 1e6:.1f}", spent, moved, rate, *bound_
            )
        seconds, least = (sum(getattr(each, name) * each.kernels for each in own) for name in ("seconds", "bound"))
        moved = sum(each.bytes * each.kernels for each in own)
        rate, share = f"{moved / max(seconds, 1e-9) / 1e9:.1f}", f"{least / max(seconds, 1e-9):.2f}"
        cells = ("", f"{seconds * 1e6:.1f}", f"{moved / 1e6:.3f}", rate, f"{least * 1e6:.1f}", share, "")
        table.add_row(str(rows), "all of these", str(sum(each.kernels for each in own)), *cells)
    console.print(table)
    print(told(peaks))


def told(peaks: Peaks) -> str:
    """The machine's peaks in a sentence."""
    flops = ", ".join(f"{name} {count / 1e9:.0f} GFLOP/s" for name, count in peaks.flops.items())
    return f"measured here: reads {peaks.bandwidth / 1e9:.1f} GB/s; {flops}"


def print_race(source: str, raced: Race, compared: int, console: Console) -> None:
    """Prints what a check and a race of two versions found."""
    print(f"{source}: all bits equal in {compared} rows, each alone and among others")
    table = Table("rows", "generated us", "edited us", "times as fast", "in half of the turns")
    for rows in raced.seconds:
        gains = raced.gains(rows, 1)
        quarter = len(gains) // 4
        own, edited = (f"{raced.median(rows, version) * 1e6:.1f}" for version in (0, 1))
        between = f"{gains[quarter]:.3f} to {gains[-1 - quarter]:.3f}"
        table.add_row(str(rows), own, edited, f"{median(gains):.3f}", between)
    console.print(table)


def race_dict(source: str, raced: Race, compared: int) -> dict[str, Any]:
    """The same as plain data."""
    steps = [
        {
            "rows": rows,
            "generated_seconds": raced.median(rows, 0),
            "edited_seconds": raced.median(rows, 1),
            "gain": median(raced.gains(rows, 1)),
        }
        for rows in raced.seconds
    ]
    return {"kernel": source, "rows_compared": compared, "bits_identical": True, "steps": steps}


def print_tuned(found: Sequence[Tuned], console: Console) -> None:
    """Prints a line for each tuned kernel."""
    table = Table("model", "target", Column("kernel", no_wrap=True), "choice", "times as fast")
    for each in found:
        for file in each.files:
            table.add_row(each.model, each.target, Path(file).stem, each.changes[file], f"{each.gains[file]:.3f}")
    console.print(table)


def tuned_dict(found: Sequence[Tuned]) -> list[Mapping[str, Any]]:
    """The same as plain data."""
    return [asdict(each) for each in found]
