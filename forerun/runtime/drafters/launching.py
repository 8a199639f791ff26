"""Drafts of several sessions at once: launches that they wait for at the same time are one launch."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from forerun.runtime.drafters.growing import Grown, Level
from forerun.runtime.engine import Engine
from forerun.runtime.executable import WHOLE, Float32, Int32, Part, Rows, StepResult
from forerun.runtime.rows import join
from forerun.runtime.tree import TreeBuilder

T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """Rows of one session that its draft needs evaluated."""

    rows: Rows
    part: Part = WHOLE
    hidden: Float32 | None = None  # [n, D] the rows' stream where the part enters


Launching = Generator[Launch, StepResult, T]
"""A draft: yields what it needs evaluated and is sent the result, valid until its next launch; returns its proposal."""


def levels(
    growing: Generator[Level, tuple[Int32, Float32], Grown],
    evaluation: Callable[[TreeBuilder, Sequence[int]], Launching[tuple[Int32, Float32]]],
) -> Launching[Grown]:
    """Drives a growing tree (`Grower.growing`), whose levels `evaluation` turns into launches."""
    try:
        level = next(growing)
        while True:
            level = growing.send((yield from evaluation(*level)))
    except StopIteration as end:
        return end.value


def together(engine: Engine, drafts: Sequence[Launching[T]]) -> list[T | Exception]:
    """Returns what each draft returns, or the error that it raises.

    No other user of the engine runs a step between the launches, as the rows of a growing tree lie at spare slots.
    """
    found: dict[int, T | Exception] = {}
    waiting = {number: launch for number in range(len(drafts)) if (launch := _next(drafts, number, found))}
    if waiting:
        with engine.serving:
            while waiting:
                waiting = {
                    number: launch
                    for group in _groups(engine, waiting)
                    for number, result in _run(engine, {each: waiting[each] for each in group})
                    if (launch := _next(drafts, number, found, result))
                }
    return [found[number] for number in range(len(drafts))]


def _next(
    drafts: Sequence[Launching[T]], number: int, found: dict[int, T | Exception], result: StepResult | None = None
) -> Launch | None:
    """Lets a draft go on. Returns its next launch, unless it has ended."""
    try:
        return next(drafts[number]) if result is None else drafts[number].send(result)
    except StopIteration as end:
        found[number] = end.value
    except Exception as error:
        found[number] = error
    return None


def _groups(engine: Engine, waiting: dict[int, Launch]) -> list[list[int]]:
    """Divides launches into those that can be one: of the same part, and no more rows than a step has."""
    limits, groups = engine.executable, list[list[int]]()
    sizes: dict[tuple[Part, int], tuple[int, int]] = {}
    places: dict[Part, int] = {}
    for number, launch in waiting.items():
        rows, outputs = len(launch.rows.tokens), len(launch.rows.outputs)
        at = places.get(launch.part, -1)
        used, given = sizes.get((launch.part, at), (limits.max_rows, 0))
        if at < 0 or used + rows > limits.max_rows or given + outputs > limits.max_outputs:
            at, used, given = len(groups), 0, 0
            places[launch.part] = at
            groups.append([])
        groups[at].append(number)
        sizes[launch.part, at] = used + rows, given + outputs
    return groups


def _run(engine: Engine, launches: dict[int, Launch]) -> Generator[tuple[int, StepResult]]:
    """Runs launches as one. Yields each draft's number and part of the result."""
    members = list(launches.values())
    hidden = None if members[0].hidden is None else np.concatenate([_stream(each) for each in members])
    result = engine.run(join([each.rows for each in members]), members[0].part, hidden)
    if len(members) == 1:
        yield next(iter(launches)), result
        return
    kept = _copy(result)  # a draft that goes on may run a step of its own
    row = output = 0
    for number, launch in launches.items():
        rows = slice(row, row + len(launch.rows.tokens))
        outputs = slice(output, output + len(launch.rows.outputs))
        row, output = rows.stop, outputs.stop
        yield number, _part(kept, rows, outputs)


def _stream(launch: Launch) -> Float32:
    assert launch.hidden is not None
    return launch.hidden


def _copy(result: StepResult) -> StepResult:
    return StepResult(result.logits[:0], result.candidates.copy(), result.candidate_logits.copy(), result.hidden.copy())


def _part(result: StepResult, rows: slice, outputs: slice) -> StepResult:
    """Returns some rows of a result; drafts do not read logits."""
    candidates, logits = result.candidates[outputs], result.candidate_logits[outputs]
    return StepResult(result.logits, candidates, logits, result.hidden[rows] if len(result.hidden) else result.hidden)
