"""The program that the compiled code walks, and its parts when residual branches are left out.

A call is a row of int64: the number of a kernel's function, how many numbers of weights it reads whole, then where its
operands lie, in numbers; a state takes two places, its own in a record and the size of a whole record. A part is a
selection of the rows with some of their places exchanged: those where they find the residual stream
(`execute.branches`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from forerun.codegen.program import NUMBER, Entry, Kernel, Launch, Message, Operand, Program
from forerun.codegen.tvm.layout import StatePlaces
from forerun.execute.branches import StepPart
from forerun.execute.tvm.batching import OwnValues, batches
from forerun.runtime.executable import Part

Span = tuple[int, int]
FUNCTION, ONCE_MORE, RUN = (1 << 16) - 1, 1 << 16, 32
"""In a call's first number: its function, one more run of it, and where the offsets of a run are counted."""


@dataclass(frozen=True)
class PartCalls:
    """The calls that run a part of a step, and the messages between them, each behind a number of calls."""

    calls: NDArray[np.int64]
    copies: int  # of the arena
    given: int | None  # where the stream lies at entry; None if it begins with the tokens' embedding
    left: int | None  # where it leaves the stream
    messages: tuple[tuple[int, Message], ...] = ()


class Calls:
    """All calls of a program: those of the step first, then those of its other entries."""

    def __init__(self, program: Program, weights: Mapping[str, int], states: StatePlaces) -> None:
        self.program, self.weights, self.states = program, weights, states
        self._functions = {name: number for number, name in enumerate(program.sources)}
        rows: list[list[int]] = []
        self.spans: dict[str, list[Span]] = {}
        self._streams: list[list[tuple[int, int]]] = []  # of each call: columns that name a value of the stream
        self._values: list[list[int]] = []  # and those that name other values, or scratch
        for entry in program.entries:
            self.spans[entry.name] = []
            for kernel in entry.kernels:
                start = len(rows)
                rows.extend(self._row(entry, launch) for launch in kernel.launches)
                self.spans[entry.name].append((start, len(rows)))
        self.array = _array(rows)

    def of_entry(self, name: str) -> Span:
        """Returns the first call of an entry, and the one after its last."""
        spans = self.spans[name]
        return (spans[0][0], spans[-1][1]) if spans else (0, 0)

    def _row(self, entry: Entry, launch: Launch) -> list[int]:
        weights = sum(self.program.weights[each].bytes for each in launch.matrices) // NUMBER
        row, streams, values = [self._functions[launch.source], weights], list[tuple[int, int]](), list[int]()
        for operand in launch.operands:
            if operand.stream is not None:
                streams.append((len(row), operand.stream))
            elif operand.kind in ("value", "scratch"):
                values.append(len(row))
            row.extend(self._places(entry, operand))
        self._streams.append(streams)
        self._values.append(values)
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
        found = StepPart(self.program, part)
        chosen, copies = self._chosen(found)
        behind = [0, *accumulate(map(len, chosen))]
        messages = tuple(
            (count, _found(kernel, kernel.message, found))
            for count, kernel in zip(behind, found.kernels, strict=False)
            if kernel.message is not None
        )
        return PartCalls(
            _stacked(chosen, self.array), copies, found.given if part.enter else None, found.left, messages
        )

    def _chosen(self, part: StepPart) -> tuple[list[NDArray[np.int64]], int]:
        """Returns the calls of each kernel of a part, or of several at the first of them, and the copies of the arena
        that these need."""
        spans = dict(zip(map(id, self.program.kernels), self.spans[self.program.step.name], strict=True))
        found, copies = batches(part), 1
        batch_of = {id(each.layers[0][0]): each for each in found}
        copy_of = {own[0].branch: number for each in found for number, own in enumerate(each.layers)}
        batched = {id(kernel) for each in found for own in each.layers for kernel in own}
        values: dict[int | None, OwnValues] = {branch: OwnValues() for branch in copy_of}

        def turned(kernel: Kernel) -> NDArray[np.int64]:
            copy, own = copy_of.get(kernel.branch, 0), set[int]()
            if copy:
                own = values[kernel.branch].of(kernel, id(kernel) in batched)
            return self._turned(spans[id(kernel)], kernel, part, own, copy * self.program.memory)

        chosen: list[NDArray[np.int64]] = []
        for kernel in part.kernels:
            if (batch := batch_of.get(id(kernel))) is not None:
                layers = [np.concatenate([turned(each) for each in own]) for own in batch.layers]
                copies = max(copies, len(layers))
                chosen.append(_side_by_side(layers))
            elif id(kernel) not in batched:
                chosen.append(turned(kernel))
        return chosen, copies

    def _turned(self, span: Span, kernel: Kernel, part: StepPart, own: set[int], shift: int) -> NDArray[np.int64]:
        """The calls of a kernel; it finds values at places in `own` so much further on."""
        calls, at = self.array[slice(*span)].copy(), slice(*span)
        for row, streams, values in zip(calls, self._streams[at], self._values[at], strict=True):
            for column, number in streams:
                row[column] = part.place(kernel, number)
            for column in values:
                row[column] += shift if int(row[column]) in own else 0
        return calls


def _side_by_side(layers: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Calls of equally many kernels of each layer: those of one function that follow each other are one call."""
    rows: list[list[int]] = []
    offsets = layers[0].shape[1] - 2
    for turn in zip(*layers, strict=True):
        begun = len(rows)
        for function, words, *places in (each.tolist() for each in turn):
            if len(rows) > begun and rows[-1][0] & FUNCTION == function:
                rows[-1][0] += ONCE_MORE
                rows[-1][1] += words
                rows[-1] += places
            else:
                rows.append([function + (offsets << RUN), words, *places])
    return _array(rows)


def _array(rows: list[list[int]]) -> NDArray[np.int64]:
    width = max(map(len, rows), default=1)
    return np.array([row + [0] * (width - len(row)) for row in rows], np.int64).reshape(-1, width)


def _stacked(calls: Sequence[NDArray[np.int64]], empty: NDArray[np.int64]) -> NDArray[np.int64]:
    """Calls of several widths as one array."""
    width = max((each.shape[1] for each in calls), default=1)
    wide = [np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in calls]
    return np.concatenate(wide) if wide else empty[:0]


def _found(kernel: Kernel, message: Message, part: StepPart) -> Message:
    """A message with its value where a part leaves it."""
    value = message.value
    return (
        message
        if value.stream is None
        else replace(message, value=replace(value, place=part.place(kernel, value.stream)))
    )
