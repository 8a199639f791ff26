"""Parts of `forerun dump`: derived drafts, kernels, and the tables that it prints."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from forerun.build import Lowered, emit, write_texts
from forerun.codegen.backends import BACKENDS, Report, named
from forerun.errors import InvalidOptionError
from forerun.ir import ModuleOp
from forerun.passes.base import Pass
from forerun.passes.disaggregate import Disaggregate
from forerun.passes.early_exit import EarlyExit
from forerun.passes.parallel_layers import ParallelLayers
from forerun.passes.pipeline import parse_passes
from forerun.passes.residual import summary
from forerun.passes.reuse_kv_cache import ReuseKVCache
from forerun.passes.skip_layers import SkipLayers
from forerun.progress import Progress


def draft_passes(text: str | None) -> list[Pass]:
    """Returns the passes that derive a draft and what a verifying step can reuse of it; none without a text."""
    if text is None:
        return []
    passes = list(parse_passes(text))
    if len(passes) != 1 or not isinstance(passes[0], EarlyExit | SkipLayers | ParallelLayers):
        raise InvalidOptionError(
            f"--draft {text!r} does not derive a draft; use early-exit{{layers=N}}, skip-layers{{branches=1,2}} or "
            "parallel-layers{layers=N}."
        )
    return [*passes, ReuseKVCache()]


def part_passes(part: str | None, draft: str | None) -> list[Pass]:
    """Returns the passes that leave one part of the step; none without a part."""
    if part is None:
        return []
    if draft is not None:
        raise InvalidOptionError("--draft derives a draft from the whole step; leave out --part.")
    return [Disaggregate(part)]


def require_kernels(target: str) -> None:
    """Raises a `ForerunError` if `dump_kernels` lacks a tool on this machine."""
    if (ahead := BACKENDS[target].ahead) is not None:
        named(ahead.probe)()


def dump_kernels(lowered: Lowered, target: str, dtype: str, folder: Path, progress: Progress) -> Report | None:
    """Writes the kernels' texts; returns the back end's report if it compiles them ahead of time, else None."""
    with progress.stage("kernels"):
        program = emit(lowered, target, dtype)
        write_texts(program, target, folder)
        ahead = BACKENDS[target].ahead
        return None if ahead is None else named(ahead.report)(program)


def print_passes(lowered: Lowered, console: Console) -> None:
    """Prints a line for each pass: operations before and after, time, and notes."""
    table = Table(Column("pass", no_wrap=True), "operations before", "after", "ms", "notes")
    for record in lowered.records:
        notes = "\n".join(each.removeprefix(f"{record.name}: ") for each in record.notes)
        table.add_row(record.name, str(record.before), str(record.after), f"{record.seconds * 1e3:.1f}", notes)
    console.print(table)


def print_kernels(kernels: Report, console: Console) -> None:
    """Prints a line for each kernel and architecture, and the autotuner's choices."""
    table = Table(
        Column("kernel", overflow="fold"),
        "sm",
        "block x rows",
        "warps",
        "stages",
        "registers",
        "shared bytes",
        "stack bytes",
    )
    for each in kernels.resources:
        config = each["config"]
        divided = f"{config['block']} x {config['rows']}"
        cells = (each["kernel"], each["capability"], divided, config["warps"], config["stages"])
        table.add_row(*(str(cell) for cell in (*cells, each["registers"], each["shared"], each["stack"])))
    console.print(table)
    if not kernels.choices:
        print("The autotuner has chosen nothing yet: it measures on a GPU.")
    for name, choice in kernels.choices.items():
        print(f"{name}: {choice}")


def print_residual(module: ModuleOp, console: Console) -> None:
    """Prints a line for each branch of `@step`."""
    branches = summary(module)
    if not branches:
        print("The step has no residual stream: no value on every path from the tokens to the logits is added to.")
        return
    table = Table("branch", "layer", "kind", "kernels", "linears", "weights, millions")
    for number, each in enumerate(branches):
        cells = (each.layer, each.kind, each.kernels, each.linears, f"{each.weights / 1e6:.2f}")
        table.add_row(str(number), *(str(cell) for cell in cells))
    console.print(table)
