"""What the passes and a code generator know of a model, as the data of a report."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Protocol

from forerun import ir
from forerun.codegen.kernel_places import alike
from forerun.codegen.program import BYTES, NUMBER, Kernel, Program
from forerun.ir.folded import folded
from forerun.report.data import Code, Group, KernelBox, Memory, Part, PassStep, Resource, Structure, Work

LONGEST = 8_000
"""Characters of a source that a page shows; the whole is in a dump."""
LONGEST_IR = 60_000
CHANGES = 6
"""Changes of a pass that are listed, where it has no patterns."""
IMPORT = "import"


class Record(Protocol):
    """What a pass did (`passes.pipeline.PassRecord`)."""

    @property
    def name(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def before(self) -> int: ...
    @property
    def after(self) -> int: ...
    @property
    def changes(self) -> Sequence[object]: ...
    @property
    def applied(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


class PassTexts:
    """Watches the pipeline (`passes.pipeline.Observer`): what every pass did, and the module after it."""

    def __init__(self) -> None:
        self._steps: list[PassStep] = []
        self._last = ""

    def observe(self, record: Record | None, module: ir.ModuleOp) -> None:
        text, last = ir.print_ir(module, locations=True), self._last
        self._last = text
        shown = None if text == last else _shown(text)
        if record is None:
            self._steps.append(PassStep(IMPORT, 0.0, 0, 0, (), shown, len(text)))
            return
        notes = tuple(note.removeprefix(f"{record.name}: ") for note in record.notes)
        did = record.applied or ", ".join(map(str, record.changes[:CHANGES]))
        told, counts = ((did, *notes) if did else notes), (record.before, record.after)
        self._steps.append(PassStep(record.name, record.seconds, *counts, told, shown, len(text)))

    def steps(self, import_seconds: float) -> tuple[PassStep, ...]:
        """Returns the import, which took so long, and all passes."""
        first, *rest = self._steps
        return (replace(first, seconds=import_seconds, after=rest[0].before if rest else 0), *rest)


def _shown(text: str) -> str:
    short = folded(text)
    if len(short) <= LONGEST_IR:
        return short
    return short[: short.rindex("\n", 0, LONGEST_IR) + 1]


# --- kernels


def structures(
    module: ir.ModuleOp,
    program: Program,
    texts: Mapping[str, str],
    work: Callable[[Kernel], tuple[Work, ...]],
    resources: Sequence[Mapping[str, Any]] = (),
) -> tuple[tuple[Structure, ...], list[int]]:
    """Returns the distinct kernels of a step, and which of them each kernel of it is.

    texts       a back end's texts, by the name of a file
    work        what a kernel does in steps of several sizes
    resources   what its report lists (`codegen.backends.Report`)
    """
    found: dict[tuple[str, ...], Structure] = {}
    numbers: dict[tuple[str, ...], int] = {}
    places: list[int] = []
    for kernel, operation in zip(program.kernels, _operations(module), strict=True):
        names = tuple(launch.source for launch in (*kernel.launches, *kernel.on_demand)) or (kernel.name,)
        if names not in found:
            numbers[names] = len(found)
            of_kernel = [each for each in resources if each["kernel"] in names]
            found[names] = Structure(
                label=alike(kernel.name),
                kind=_kind(operation),
                ir=_dedented(ir.print_ir(operation, locations=True)),
                nests=tuple(_code(name, texts) for name in names if f"{name}.nest" in texts),
                sources=tuple(_source(name, texts) for name in names if _file(name, texts) is not None),
                work=work(kernel),
                resources=tuple(map(_resource, of_kernel)),
            )
        places.append(numbers[names])
    return tuple(found.values()), places


def _operations(module: ir.ModuleOp) -> list[ir.SpecOperation]:
    """The operations of a step that are kernels or stand for one."""
    step = ir.functions(module)["step"]
    return [each for each in step.body if not isinstance(each, ir.Parameter | ir.Constant | ir.Return)]


def _kind(operation: ir.SpecOperation) -> str:
    return operation.kind if isinstance(operation, ir.Kernel) else operation.mnemonic


def _dedented(text: str) -> str:
    """A kernel's text, whose body xDSL indents as in a function."""
    return text.strip("\n")


def _code(name: str, texts: Mapping[str, str]) -> Code:
    return _cut(name, texts[f"{name}.nest"])


def _file(name: str, texts: Mapping[str, str]) -> str | None:
    return next((file for file in texts if re.fullmatch(rf"{re.escape(name)}\.(?!nest)\w+", file)), None)


def _source(name: str, texts: Mapping[str, str]) -> Code:
    file = _file(name, texts)
    assert file is not None
    return _cut(file, texts[file])


def _cut(name: str, text: str) -> Code:
    shown = text if len(text) <= LONGEST else text[: text.rindex("\n", 0, LONGEST) + 1]
    return Code(name, shown, len(text))


def _resource(given: Mapping[str, Any]) -> Resource:
    config = given["config"]
    shown = f"block {config['block']}, rows {config['rows']}, warps {config['warps']}, stages {config['stages']}"
    measured = (given["registers"], given["shared"], given["stack"])
    return Resource(given["kernel"], str(given["capability"]), shown, *(int(each or 0) for each in measured))


# --- boxes


def boxes(
    program: Program, places: Sequence[int], seconds: Sequence[Sequence[float]] = ()
) -> tuple[tuple[KernelBox, ...], tuple[Group, ...]]:
    """Returns the kernels of a step, each with its seconds at every number of rows, and the boxes around them."""
    times = list(zip(*seconds, strict=True)) or [()] * len(places)
    kernels = tuple(
        KernelBox(kernel.name, alike(kernel.name), structure, tuple(measured))
        for kernel, structure, measured in zip(program.kernels, places, times, strict=True)
    )
    return kernels, tuple(_groups(program, places))


def _groups(program: Program, places: Sequence[int]) -> list[Group]:
    """Layers of the same structures that follow one another are one group."""
    found: list[Group] = []
    outer = ((_layer(program, kernel), at) for at, kernel in enumerate(program.kernels))
    layers = [(layer, [at for _, at in each]) for layer, each in groupby(outer, key=lambda pair: pair[0])]
    shapes = [(layer is None, [places[at] for at in own] if layer is not None else own) for layer, own in layers]
    numbered = list(zip(layers, shapes, strict=True))
    for (outside, _), members in groupby(numbered, key=lambda pair: pair[1]):
        own = [layer for layer, _ in members]
        names = [layer for layer, _ in own]
        title = "outside layers" if outside else _title([each for each in names if each is not None])
        parts = _parts(program, [kernels for _, kernels in own])
        found.append(Group(title, 0 if outside else len(own), parts))
    return found


def _title(layers: Sequence[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"


def _layer(program: Program, kernel: Kernel) -> int | None:
    return None if kernel.branch is None else program.branches[kernel.branch][0]


def _parts(program: Program, layers: Sequence[Sequence[int]]) -> tuple[Part, ...]:
    columns = list(zip(*layers, strict=True))
    by_branch = groupby(columns, key=lambda column: program.kernels[column[0]].branch)
    return tuple(Part(_branch(program, branch), tuple(map(tuple, each))) for branch, each in by_branch)


def _branch(program: Program, branch: int | None) -> str:
    return "" if branch is None else program.branches[branch][1].replace("_", " ")


# --- memory


def memory(program: Program) -> tuple[Memory, ...]:
    """Returns what the weights, the states of a whole sequence, and the values of a step take."""
    weights = sum(each.bytes for each in program.weights.values())
    found = [Memory("weights", weights, f"{len(program.weights)} tensors, as the kernels read them")]
    per = {"position": program.max_length, "row": 1, "request": 1}
    what = {"position": f"of {program.max_length} positions", "row": "of a row", "request": "of a request"}
    for kind in per:
        own = [each for each in program.states.values() if each.per == kind]
        if own:
            size = sum(each.numbers * BYTES.get(each.element, NUMBER) * per[kind] for each in own)
            found.append(Memory(f"states per {kind}", size, f"{len(own)} states {what[kind]}"))
    rows = f"values of a step of up to {program.max_rows} rows, which share places"
    found.append(Memory("arena", program.memory * NUMBER, rows))
    return tuple(found)
