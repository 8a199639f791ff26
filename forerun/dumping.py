"""Parts of `forerun dump`: derived drafts, kernels, and the tables that it prints."""

from __future__ import annotations

import difflib
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from forerun.artifacts.bundle import Bundle
from forerun.build import Lowered, Opening, emit, texts_of
from forerun.codegen.backends import BACKENDS, Report, named
from forerun.compiler import export
from forerun.dump_folder import DumpFolder, Selection
from forerun.errors import InvalidOptionError
from forerun.ir import ModuleOp
from forerun.passes.base import Pass
from forerun.passes.changes import summary
from forerun.passes.disaggregate import Disaggregate
from forerun.passes.early_exit import EarlyExit
from forerun.passes.parallel_layers import ParallelLayers
from forerun.passes.pipeline import PASSES, parse_passes
from forerun.passes.residual import summary as residual_summary
from forerun.passes.reuse_kv_cache import ReuseKVCache
from forerun.passes.skip_layers import SkipLayers
from forerun.progress import Progress

MOST = 4
"""The most changes of a pass that its line names."""


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


def selected(full: bool, changed: bool, before: Sequence[str] | None, after: Sequence[str] | None) -> Selection:
    """Returns which modules a dump holds. Raises `InvalidOptionError` for a pass that does not exist."""
    for name in (*(before or ()), *(after or ())):
        if name not in PASSES:
            near = difflib.get_close_matches(name, PASSES, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(PASSES)}."
            raise InvalidOptionError(f"There is no pass {name!r}; {hint}")
    return Selection(full, changed, frozenset(before or ()), frozenset(after or ()))


def part_passes(part: str | None, draft: str | None) -> list[Pass]:
    """Returns the passes that leave one part of the step; none without a part."""
    if part is None:
        return []
    if draft is not None:
        raise InvalidOptionError("--draft derives a draft from the whole step; leave out --part.")
    return [Disaggregate(part)]


def require_kernels(target: str, asm: bool = False, left_out: bool = False) -> None:
    """Raises a `ForerunError` if `dump_kernels` lacks a tool on this machine, or cannot show what is compiled."""
    if left_out:
        if asm:
            raise InvalidOptionError("--asm shows what kernels are compiled to: leave out --no-kernels.")
        return
    if asm and BACKENDS[target].tuning is None:
        raise InvalidOptionError(
            f"The {target} target does not show what its kernels are compiled to: leave out --asm."
        )
    if (ahead := BACKENDS[target].ahead) is not None:
        named(ahead.probe)()


def dump_kernels(
    lowered: Lowered, target: str, dtype: str, dump: DumpFolder, progress: Progress, asm: bool = False
) -> Report | None:
    """Writes the kernels' texts, and what they are compiled to; returns the back end's report if it compiles them ahead
    of time, else None."""
    with progress.stage("kernels"):
        program = emit(lowered, target, dtype)
        tuning, ahead = BACKENDS[target].tuning, BACKENDS[target].ahead
        compiled: dict[str, str] = {}
        if asm and tuning is not None:
            compiled = named(tuning.assembly)(program, [*program.program.sources])
        dump.kernels(program, {**texts_of(program, target), **compiled})
        return None if ahead is None else named(ahead.report)(program)


def graph_for_netron(arguments: Namespace, opening: Opening, progress: Progress) -> Path:
    """Exports an ONNX bundle; returns the graph of its step."""
    folder = export(
        arguments.model,
        arguments.netron,
        strategy="autoregressive",
        dtype=arguments.dtype,
        max_length=arguments.max_length,
        progress=progress,
        opening=opening,
    )
    return folder / next(name for name in Bundle(folder).manifest.files if name.endswith(".onnx"))


def print_passes(lowered: Lowered, console: Console) -> None:
    """Prints a line for each pass: operations before and after, time, what changed, and notes."""
    table = Table(Column("pass", no_wrap=True), "operations before", "after", "ms", "what changed")
    for record in lowered.records:
        shown = [*([record.applied] if record.patterns else []), *summary(record.changes, MOST)]
        shown += [each.removeprefix(f"{record.name}: ") for each in record.notes]
        table.add_row(
            record.name, str(record.before), str(record.after), f"{record.seconds * 1e3:.1f}", "\n".join(shown)
        )
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
    branches = residual_summary(module)
    if not branches:
        print("The step has no residual stream: no value on every path from the tokens to the logits is added to.")
        return
    table = Table("branch", "layer", "kind", "kernels", "linears", "weights, millions")
    for number, each in enumerate(branches):
        cells = (each.layer, each.kind, each.kernels, each.linears, f"{each.weights / 1e6:.2f}")
        table.add_row(str(number), *(str(cell) for cell in cells))
    console.print(table)
