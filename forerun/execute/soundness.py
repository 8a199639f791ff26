"""Whether a program that was read from a bundle says what the bundle does, and names places that exist.

This finds what no export writes. It is no sandbox: the code of a bundle is native, and may do anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from math import prod

from forerun.artifacts.manifest import Manifest
from forerun.artifacts.written import limits_of
from forerun.codegen.program import Entry, Operand, Program, Value
from forerun.errors import CorruptFileError

SAMPLING = ("draws",)
"""The input of a step that samples, which a GPU's launcher places itself."""


def require_sound(program: Program, manifest: Manifest, where: str) -> None:
    """Raises `CorruptFileError`, which refers to the bundle as `where`."""
    if wrong := next(_faults(program, manifest), None):
        raise CorruptFileError(f"{where} has {wrong}: export the model again.")


def _faults(program: Program, manifest: Manifest) -> Iterator[str]:
    for name, value in asdict(limits_of(program)).items():
        if value != (listed := getattr(manifest.limits, name)):
            yield f"a step with {name} {value}, and the limit {listed}"
    if program.vocabulary != manifest.model.vocabulary:
        yield f"a step with {program.vocabulary} logits, and a vocabulary of {manifest.model.vocabulary}"
    if program.signatures != manifest.entries:
        yield "a step whose entries are others than it lists"
    states = {name: (each.per, each.shape) for name, each in program.states.items()}
    if states != {name: (each.per, each.shape) for name, each in manifest.states.items()}:
        yield "a step whose states are others than it lists"
    if not all(0 <= place < program.arena for place in program.stream):
        yield "a stream outside the step's memory"
    for entry in program.entries:
        for kernel in entry.kernels:
            for launch in (*kernel.launches, *kernel.on_demand):
                for operand in launch.operands:
                    if not _exists(program, entry, operand):
                        yield f"the kernel {kernel.name}, which reads or writes at {operand.key}"
        for value in entry.returned:
            if not _inside(program, value):
                yield f"the result {value.name} outside the step's memory"


def _exists(program: Program, entry: Entry, operand: Operand) -> bool:
    match operand.kind:
        case "input":
            return operand.key in entry.places or operand.key in SAMPLING
        case "weight":
            return operand.key in program.weights
        case "state":
            return operand.key in program.states
        case _:
            return isinstance(operand.key, int) and 0 <= operand.key < program.arena


def _inside(program: Program, value: Value) -> bool:
    """Whether a result of the largest step fits."""
    sizes = {"N": program.max_rows, "M": program.max_outputs}
    named = [dim for dim in value.dims if isinstance(dim, str)]
    if any(dim not in sizes for dim in named):
        return value.place >= 0  # of another entry, whose sizes a call decides
    return value.place >= 0 and value.place + prod(value.sizes(sizes)) <= program.arena
