"""`forerun report`: compiles a model, measures it, records a generation, and puts what is known into a report."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any, cast

import forerun
from forerun.build import OPENING, Lowered, Opening, bound, emit, lower, texts_of, warn_of_length
from forerun.chat import encode_chat
from forerun.codegen.backends import BACKENDS, FLOAT32, Backend, Tuning, named
from forerun.codegen.program import Kernel, Program
from forerun.compile_options import resolve_arithmetic
from forerun.cores import thread_count
from forerun.errors import ForerunError, InvalidOptionError
from forerun.execute.work import Work as Done
from forerun.execute.work import work_of
from forerun.overrides import given_files, with_overrides
from forerun.progress import Progress
from forerun.report import collect
from forerun.report.data import KIND, VERSION, About, Cost, Replay, Report, Roofs, StepBoxes, Work
from forerun.report.replay import replay
from forerun.runtime.calibration import CostModel
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Rows
from forerun.runtime.model import CompiledModel, Origin, source_name
from forerun.runtime.recording import Iteration
from forerun.runtime.trial import Trial
from forerun.schedules import measure_cost, model_of, with_strategy
from forerun.strategies import Strategy, Target, resolve_strategy
from forerun.tuning.roofline import Peaks, least_of, measured

ROWS = (1, 8, 32)
"""The sizes of steps whose kernels are timed."""
CONTEXT = 128
"""Positions in the cache meanwhile."""
ROUNDS = 7
PROMPT = "Write a Python class Queue with the methods push, pop, peek and is_empty, then show how each method is used."
TOKENS: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8)
"""The prompt of a model without a tokenizer."""
PLAIN = 64
"""The most tokens that are also decoded plainly, for comparison."""


@dataclass(frozen=True)
class Given:
    """What to compile and to generate: arguments of `forerun.compile` and of `generate`.

    prompt  a text, or token ids; None for `PROMPT`, or `TOKENS` without a tokenizer
    raw     whether a text is taken as it is, without a chat template
    run     whether to run the model at all: without, times and the generation are missing
    """

    source: Any
    strategy: str | Strategy = "tree_spec"
    dtype: str = "float32"
    target: str = "cpu"
    max_length: int | None = None
    arithmetic: str = "auto"
    opening: Opening = OPENING
    prompt: str | Sequence[int] | None = None
    raw: bool = False
    max_new_tokens: int = 128
    run: bool = True


def make_report(given: Given, progress: Progress) -> Report:
    """Returns the report of a model. Raises a `ForerunError`, as `forerun.compile` and `generate` do."""
    backend = BACKENDS[given.target]
    arithmetic = resolve_arithmetic(given.arithmetic, given.target, given.dtype)
    began = time.perf_counter()
    watched = collect.PassTexts()
    lowered = lower(
        given.source, given.dtype, given.max_length, progress, observer=watched.observe, opening=given.opening,
        cache_in_memory=backend.cache_in_memory, fused=backend.fused, arithmetic=arithmetic,
    )  # fmt: skip
    warn_of_length(lowered.capped)
    passes = watched.steps(time.perf_counter() - began - progress.seconds.get("passes", 0.0))
    with progress.stage("kernels"):
        generated = emit(lowered, given.target, given.dtype)
        emitted = with_overrides(generated, given.target, given_files(None, given.target))
        executable = bound(emitted, given.target) if given.run else None
    compiled = time.perf_counter() - began
    program = getattr(emitted, "program", None)
    engine = None if executable is None else Engine(executable)
    notes: list[str] = [] if given.run else ["Not run: there are no times and no generation."]
    cost = step = kernels = played = None
    if engine is not None:
        cost = measure_cost(engine, progress)
        played = _played(given, lowered, engine, cost, progress, notes)
    if overrides := getattr(executable, "overrides", None):
        notes.append("Not as generated: " + "; ".join(f"{name}, {words}" for name, words in overrides.items()) + ".")
    if isinstance(program, Program):
        timed = backend.tuning if given.run else None
        kernels = planned_kernels(program) if timed is None else measured_kernels(program, executable, timed, progress)
        with progress.stage("collect"):
            step = _step(given, lowered, kernels, emitted, notes)
    else:
        notes.append(f"The target {given.target} has no kernels of forerun's own.")
    return Report(
        KIND,
        VERSION,
        _about(given, lowered, compiled),
        passes,
        step,
        None if kernels is None else kernels.roofs,
        None if cost is None else Cost(cost.rows, cost.measured),
        collect.memory(program) if isinstance(program, Program) else (),
        played,
        tuple(notes),
    )


def _about(given: Given, lowered: Lowered, seconds: float) -> About:
    threads = thread_count()
    return About(
        model=lowered.source.name,
        target=given.target,
        dtype=given.dtype,
        strategy=given.strategy if isinstance(given.strategy, str) else repr(given.strategy),
        max_length=lowered.max_length,
        machine=f"{platform.machine()}, {threads} thread{'' if threads == 1 else 's'}",
        forerun=forerun.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        compile_seconds=seconds,
    )


def _step(given: Given, lowered: Lowered, kernels: Kernels, emitted: Any, notes: list[str]) -> StepBoxes:
    backend, program = BACKENDS[given.target], kernels.program
    texts = texts_of(emitted, given.target)
    resources = _resources(backend, emitted, notes)
    found, places = collect.structures(lowered.module, program, texts, kernels.work, resources)
    boxes, groups = collect.boxes(program, places, kernels.seconds)
    others = tuple((entry.name, len(entry.kernels)) for entry in program.entries[1:])
    dump = f"forerun dump {source_name(given.source)} --target {given.target} --dtype {given.dtype}"
    return StepBoxes(tuple(kernels.steps), kernels.context, boxes, found, groups, others, dump)


def _resources(backend: Backend, emitted: Any, notes: list[str]) -> list[dict[str, Any]]:
    """What each kernel takes of a GPU, if the back end's compiler is here."""
    if backend.ahead is None:
        return []
    try:
        named(backend.ahead.probe)()
    except ForerunError as error:
        notes.append(f"Registers and shared memory are not known here: {error}")
        return []
    return named(backend.ahead.report)(emitted).resources


def _played(
    given: Given, lowered: Lowered, engine: Engine, cost: CostModel, progress: Progress, notes: list[str]
) -> Replay:
    """Records a generation on the host, whose loop can be listened to; then decodes its beginning plainly."""
    chosen, source = resolve_strategy(given.strategy), lowered.source
    target = Target(engine, cost, source.tokenizer, progress)
    origin = Origin(source_name(given.source), given.target, given.dtype)
    model = model_of(chosen, target, source.eos_token_ids, origin, defaults=source.defaults)
    if model.on_device is not None:
        notes.append("Recorded on the host: generate() decodes in a loop on the device, which is faster.")
    prompt, tokens = _prompt(given, model)
    iterations: list[Iteration] = []
    with progress.stage("generate"), model.serving.listening(iterations.append):
        [generation] = model.sessions(tokens, max_new_tokens=given.max_new_tokens, do_sample=False).generations()
    plain = None
    if chosen.drafters:
        without = with_strategy(model, "autoregressive", progress)
        with progress.stage("generate plainly"):
            count = min(PLAIN, given.max_new_tokens)
            [plain] = without.sessions(tokens, max_new_tokens=count, do_sample=False).generations()
    return replay(prompt, iterations, generation, plain, model.tokenizer)


def _prompt(given: Given, model: CompiledModel) -> tuple[str, list[int]]:
    """The prompt as it is shown, and its token ids."""
    tokenizer: Any = model.tokenizer
    if given.prompt is not None and not isinstance(given.prompt, str):
        tokens = list(given.prompt)
    elif tokenizer is None and given.prompt is None:
        tokens = list(TOKENS)
    elif tokenizer is None:
        raise InvalidOptionError(f"{given.source} has no tokenizer: give the prompt as token ids.")
    else:
        text = given.prompt or PROMPT
        return text, list(tokenizer.encode(text)) if given.raw else encode_chat(tokenizer, text)
    return ", ".join(map(str, tokens)), tokens


# --- kernels


@dataclass(frozen=True)
class Kernels:
    """The kernels of a step, steps of several sizes, and, if those ran, times and the machine's peaks."""

    program: Program
    context: int  # positions in the cache
    steps: Mapping[int, Rows]
    seconds: tuple[tuple[float, ...], ...] = ()  # by size, of every kernel
    peaks: Peaks | None = None

    def work(self, kernel: Kernel) -> tuple[Work, ...]:
        """What a kernel does in each of the steps."""
        return tuple(self._work(count, work_of(self.program, kernel, rows)) for count, rows in self.steps.items())

    def _work(self, count: int, work: Done) -> Work:
        least = None if self.peaks is None else least_of(work, self.peaks)
        return Work(count, work.weight_bytes, work.value_bytes, sum(work.flops.values()), least)

    @property
    def roofs(self) -> Roofs | None:
        """The peaks, of arithmetic that of most operations."""
        if self.peaks is None:
            return None
        done = Counter[str]()
        for kernel in self.program.kernels:
            done.update(work_of(self.program, kernel, [*self.steps.values()][-1]).flops)
        name = done.most_common(1)[0][0] if done else FLOAT32
        how = f"Measured here, between the kernels: reads of memory, and operations in {name}."
        return Roofs(self.peaks.bandwidth, self.peaks.flops[name], how)


class Planned:
    """A program in place of an executable, for steps that are not run."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __getattr__(self, name: str) -> Any:
        return getattr(self.program, name)

    def new_state(self, blocks: int) -> None:
        """Returns nothing: no step is run."""


def planned_kernels(program: Program) -> Kernels:
    """Returns the kernels of a step that is not run."""
    trial = Trial(cast(Any, Planned(program)), CONTEXT)
    trial.sequence.length = trial.context
    return Kernels(program, trial.context, {count: trial.rows(count) for count in _sizes(program)})


def measured_kernels(program: Program, executable: Any, tuning: Tuning, progress: Progress) -> Kernels:
    """Returns the kernels of a step, each timed in whole steps, and the machine's peaks, measured in between."""
    trial = Trial(executable, CONTEXT)
    trial.begin()
    steps = {count: trial.rows(count) for count in _sizes(program)}
    rounds, peaks = measured(tuning, executable, trial.state, steps, ROUNDS, progress)
    seconds = tuple(tuple(median(each) for each in zip(*own, strict=True)) for own in rounds.values())
    return Kernels(program, trial.context, steps, seconds, peaks)


def _sizes(program: Program) -> list[int]:
    return [count for count in ROWS if count <= min(program.max_rows, program.max_length // 2)]
