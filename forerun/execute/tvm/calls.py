"""The program that the compiled code walks, and its parts when residual branches are left out.

A call is a row of int64: the number of a kernel's function, how many numbers of weights it reads whole, then where its
operands lie, in numbers; a state takes two places, its own in a record and the size of a whole record. The stream's
values alternate between two buffers: if a branch is left out, later kernels find the stream in the other buffer, so a
part is a selection of the rows with some of their places exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forerun.codegen.program import NUMBER, Entry, Launch, Operand, Program
from forerun.codegen.tvm.layout import StatePlaces
from forerun.execute.branches import remaining, turn
from forerun.runtime.executable import Part

Span = tuple[int, int]


@dataclass(frozen=True)
class PartCalls:
    """The calls that run a part."""

    calls: NDArray[np.int64]
    given: int | None  # where the stream lies at entry; None if it begins with the tokens' embedding
    left: int | None  # where it leaves the stream


class Calls:
    """All calls of a program: those of the step first, then those of its other entries."""

    def __init__(self, program: Program, weights: Mapping[str, int], states: StatePlaces) -> None:
        self.program, self.weights, self.states = program, weights, states
        self._functions = {name: number for number, name in enumerate(program.sources)}
        rows: list[list[int]] = []
        self.spans: dict[str, list[Span]] = {}
        self._streams: list[list[tuple[int, int]]] = []  # of each call: columns that name a value of the stream
        for entry in program.entries:
            self.spans[entry.name] = []
            for kernel in entry.kernels:
                start = len(rows)
                rows.extend(self._row(entry, launch) for launch in kernel.launches)
                self.spans[entry.name].append((start, len(rows)))
        width = max(map(len, rows), default=1)
        self.array = np.array([row + [0] * (width - len(row)) for row in rows], np.int64).reshape(-1, width)

    def of_entry(self, name: str) -> Span:
        """Returns the first call of an entry, and the one after its last."""
        spans = self.spans[name]
        return (spans[0][0], spans[-1][1]) if spans else (0, 0)

    def _row(self, entry: Entry, launch: Launch) -> list[int]:
        weights = sum(self.program.weights[each].bytes for each in launch.matrices) // NUMBER
        row, streams = [self._functions[launch.source], weights], list[tuple[int, int]]()
        for operand in launch.operands:
            if operand.stream is not None:
                streams.append((len(row), operand.stream))
            row.extend(self._places(entry, operand))
        self._streams.append(streams)
        return row

    def _places(self, entry: Entry, operand: Operand) -> list[int]:
        match operand.kind:
            case "input":
                return [entry.places[str(operand.key)]]
            case "weight":
                return [self.weights[str(operand.key)]]
            case "state":
                state = self.program.states[str(operand.key)]
                return [self.states.places[str(operand.key)], self.states.size(state)]
            case _:
                return [int(operand.key)]

    def part(self, part: Part) -> PartCalls:
        """Returns the calls of a part of the step. Raises `InvalidOptionError` if the step has no such part."""
        program = self.program
        kept, evaluated = remaining(program.kernels, part, len(program.branches))
        spans = dict(zip(map(id, program.kernels), self.spans[program.step.name], strict=True))
        chosen = [self._turned(spans[id(kernel)], evaluated) for kernel in kept]
        calls = np.concatenate(chosen) if chosen else self.array[:0]
        given = program.stream[0] if part.enter else None
        return PartCalls(calls, given, program.stream[len(evaluated) % 2] if program.stream else None)

    def _turned(self, span: Span, evaluated: list[int]) -> NDArray[np.int64]:
        calls = self.array[slice(*span)].copy()
        for row, streams in zip(calls, self._streams[slice(*span)], strict=True):
            for column, number in streams:
                row[column] = self.program.stream[turn(evaluated, number)]
        return calls
