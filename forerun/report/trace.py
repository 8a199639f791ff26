"""A report as Chrome's trace events, which Perfetto (https://ui.perfetto.dev) and chrome://tracing open.

The format is that of "Trace Event Format" (Google): complete events "X" with `ts` and `dur` in microseconds, names of
processes and threads as metadata "M", counters "C".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from forerun.report.data import Replay, Report, StepBoxes

Event = dict[str, Any]
MICRO = 1e6
PASSES, GENERATION, KERNELS = 1, 2, 3
"""The numbers of the processes in a trace."""
PHASES = ("draft", "step", "verify", "commit")


def trace(report: Report) -> str:
    """Returns the JSON of a report's passes, iterations and kernels, each as a process of its own."""
    events = [*_passes(report)]
    if report.replay is not None:
        events += _iterations(report.replay)
    if report.step is not None:
        events += _kernels(report.step)
    shown = {"model": report.about.model, "target": report.about.target, "forerun": report.about.forerun}
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": shown}, ensure_ascii=False)


def _named(process: int, name: str, threads: tuple[str, ...]) -> Iterator[Event]:
    yield {"ph": "M", "pid": process, "tid": 0, "name": "process_name", "args": {"name": name}}
    for number, thread in enumerate(threads, start=1):
        yield {"ph": "M", "pid": process, "tid": number, "name": "thread_name", "args": {"name": thread}}


def _event(process: int, thread: int, name: str, began: float, seconds: float, **told: Any) -> Event:
    """A complete event; times are in seconds."""
    times = {"ts": round(began * MICRO, 3), "dur": round(max(0.0, seconds) * MICRO, 3)}
    return {"ph": "X", "pid": process, "tid": thread, "name": name, "cat": "forerun", **times, "args": told}


def _passes(report: Report) -> Iterator[Event]:
    yield from _named(PASSES, "passes", ("pipeline",))
    at = 0.0
    for each in report.passes:
        told = {"operations before": each.before, "operations after": each.after, "notes": list(each.notes)}
        yield _event(PASSES, 1, each.name, at, each.seconds, **told)
        at += each.seconds


def _iterations(replay: Replay) -> Iterator[Event]:
    yield from _named(GENERATION, "generation", ("iterations",))
    words = dict(replay.vocabulary)
    total = 0
    for number, step in enumerate(replay.steps):
        told = {"rows": len(step.tokens), "tokens": [words[token] for token in step.committed], "text": step.text}
        yield _event(GENERATION, 1, f"iteration {number}", step.began, step.ended - step.began, **told)
        at, end = step.began, step.ended
        for name, seconds in zip(PHASES, step.phases, strict=True):
            lasted = min(seconds, max(0.0, end - at))
            yield _event(GENERATION, 1, name, at, lasted)
            at += lasted
        yield _event(GENERATION, 1, "learn", at, end - at)
        total += len(step.committed)
        counted = {"accepted": len(step.committed), "total": total}
        yield {"ph": "C", "pid": GENERATION, "tid": 0, "name": "tokens", "ts": round(end * MICRO, 3), "args": counted}


def _kernels(step: StepBoxes) -> Iterator[Event]:
    """Kernels end to end, as each took when it was timed by itself: one thread for each number of rows."""
    yield from _named(KERNELS, "kernels of a step", tuple(f"{rows} rows" for rows in step.rows))
    for place in range(len(step.rows)):
        at = 0.0
        for kernel in step.kernels:
            if not kernel.seconds:
                continue
            seconds, work = kernel.seconds[place], step.structures[kernel.structure].work[place]
            told = {"bytes": work.weight_bytes + work.value_bytes, "operations": work.operations}
            yield _event(KERNELS, place + 1, kernel.name, at, seconds, **told)
            at += seconds
