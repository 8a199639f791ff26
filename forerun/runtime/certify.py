"""`forerun verify` checks a compiled model's row determinism: random schedules against plain decoding.

Every row of every step of a case is compared bit for bit with the same history decoded one row at a time in a sequence
of its own; some steps are entered late, as a verification is after a draft. If a row differs and the executable can
trace its kernels, the report names the first kernel whose output differs in the row's history.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.random import Generator

from forerun.runtime.blocks import REQUESTS, BlockCache
from forerun.runtime.cache import CachedSequence
from forerun.runtime.cases import (
    SEQUENCES,
    Limits,
    Script,
    random_inputs,
    random_outputs,
    random_prompt_rows,
    random_scripts,
    random_tree_rows,
)
from forerun.runtime.certify_report import Report
from forerun.runtime.engine import encode
from forerun.runtime.executable import WHOLE, Executable, Float32, Int32, KernelOutput, Part, Rows, StepResult
from forerun.runtime.options import require_integer
from forerun.runtime.plain import PlainDecoder, digest
from forerun.runtime.rows import join, reorder
from forerun.runtime.sampling import as_numbers

TEXTS = 3
IN_PARTS = 0.25
"""The share of steps that are entered late."""


@runtime_checkable
class Traceable(Protocol):
    """An executable that can show what its kernels compute."""

    def trace(self, state: Any, rows: Rows) -> Sequence[KernelOutput]:
        """Run the step, and return all results in the order of computation."""
        ...


@dataclass(frozen=True)
class Divergence:
    """The first row that differs."""

    case: int
    step: int  # of the case
    row: int  # of the step
    rows: int  # the number of rows of the step
    position: int  # of the row in its sequence
    largest_difference: float  # between the logits
    kernel: str | None  # where its history first differs, maybe in an earlier step; None if it cannot be traced
    output: str | None

    def __str__(self) -> str:
        kernel = f"kernel {self.kernel} (output {self.output})" if self.kernel else "an unknown kernel"
        return (
            f"case {self.case}, step {self.step}: row {self.row} of {self.rows}, at position {self.position}, differs "
            f"from plain decoding by up to {self.largest_difference:.3g}, first in {kernel}"
        )


@dataclass(frozen=True)
class VerifyReport(Report):
    """The result of the cases."""

    cases: int
    steps: int
    rows: int  # compared
    differences: int  # rows that differ
    first: Divergence | None

    @property
    def compared(self) -> str:
        return f"{self.rows} rows of {self.steps} steps in {self.cases} cases"


def certify(
    executable: Executable, cases: int = 200, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Run `cases` random cases, the same for the same seed. `progress` is called with the cases done and their number.

    Nothing else may use the executable meanwhile, in particular a model that generates: `certify` has its own caches,
    but steps compute in the executable's memory.
    From the 20th case on, the last positions of `max_length` are compared too (up to `cases.FURTHEST`).
    """
    cases, seed = require_cases(cases, seed)
    certifier = _Certifier(executable, seed)
    for case in range(cases):
        certifier.run_case(case)
        if progress:
            progress(case + 1, cases)
    return VerifyReport(cases, certifier.steps, certifier.rows, certifier.differences, certifier.first)


def require_cases(cases: int, seed: int) -> tuple[int, int]:
    """Returns the number and the seed of the cases as Python ints. Raises `InvalidOptionError`."""
    return require_integer("cases", cases, least=1), require_integer("seed", seed, least=0)


@dataclass(eq=False)
class _Progress:
    """A sequence of the running case."""

    branch: int
    script: Script
    sequence: CachedSequence
    done: int = 0  # parts of the script that have run
    committed: tuple[int, ...] = ()  # tokens after the prompt

    @property
    def in_prompt(self) -> bool:
        return self.done < len(self.script.chunks)

    @property
    def finished(self) -> bool:
        return self.done == len(self.script.chunks) + len(self.script.trees)

    @property
    def next_rows(self) -> int:
        if self.in_prompt:
            return self.script.chunks[self.done]
        return len(self.script.trees[self.done - len(self.script.chunks)])


@dataclass(frozen=True)
class _Expected:
    """The history of one row: a position of a text, or a tail after a branch's beginning."""

    owner: _Progress
    position: int  # in the text; -1 for a tail
    tail: tuple[int, ...]

    def begins(self, other: "_Expected") -> bool:
        """Whether this history is a prefix of the other, or equal to it."""
        if self.owner is not other.owner:
            return False
        if self.position >= 0:
            return other.position < 0 or self.position <= other.position
        return self.tail == other.tail[: len(self.tail)]


@dataclass(frozen=True)
class _Step:
    rows: Rows
    expected: list[_Expected]  # of each row
    enter: int  # the step runs in two parts that meet after this many branches; whole if 0


@dataclass(frozen=True)
class _Copy:
    source: Int32
    destination: Int32


class _Certifier:
    def __init__(self, executable: Executable, seed: int) -> None:
        self.executable = executable
        self.random = np.random.default_rng(seed)
        self.limits = Limits.of(executable)
        self.texts = [
            self.random.integers(0, executable.vocabulary, length, dtype=np.int32)
            for length in self.limits.texts(TEXTS)
        ]
        self.inputs = [random_inputs(self.random, executable) for _ in self.texts]
        longest = self.limits.trees * (self.limits.height + 1)
        self.plain = PlainDecoder(executable, self.texts, self.inputs, SEQUENCES, longest)
        self.spare = executable.max_rows
        self.blocks = self.limits.blocks(executable.block) + -(-self.spare // executable.block) + 2
        self.state = executable.new_state(self.blocks, REQUESTS)  # what earlier cases left there must not matter
        self.events: list[_Step | _Copy] = []  # of the case
        self.steps = self.rows = self.differences = 0
        self.first: Divergence | None = None

    def run_case(self, case: int) -> None:
        cache = BlockCache(
            self.blocks, self.executable.block, self.spare, self.random.permutation(self.blocks).tolist()
        )
        self.events = []
        self.plain.forget_branches()
        running: list[_Progress] = []
        for script in random_scripts(self.random, self.limits, case, TEXTS, self.executable.vocabulary):
            sequence = CachedSequence(self.executable.block, np.empty(0, np.int32))
            cache.reserve(sequence, script.positions)
            encode(self.executable, self.state, sequence, self.inputs[script.text])
            running.append(_Progress(self.plain.begin(script.text, script.prompt), script, sequence))
        step = 0
        while any(not progress.finished for progress in running):
            self._run_step(case, step, _some(self.random, running, self.limits.rows), cache)
            step += 1

    def _run_step(self, case: int, step: int, chosen: list[_Progress], cache: BlockCache) -> None:
        """Run the next part of each chosen sequence's script in one step, its rows in random order."""
        spare = self.random.permutation(cache.spare)
        parts: list[Rows] = []
        expected: list[_Expected] = []
        for progress in chosen:
            part, histories = self._part(progress, spare)
            spare = spare[len(part.tokens) :]
            parts.append(part)
            expected.extend(histories)
        order = self.random.permutation(len(expected))
        rows = replace(
            reorder(join(parts), order), outputs=random_outputs(self.random, len(expected), self.limits.outputs)
        )
        branches = len(self.executable.branches)
        enter = int(self.random.integers(1, branches + 1)) if branches and self.random.random() < IN_PARTS else 0
        done = _Step(rows, [expected[i] for i in order], enter)
        result = self._evaluate(done)
        self.events.append(done)
        self._compare(case, step, done, result)
        for progress, part in zip(chosen, parts, strict=True):
            self._advance(progress, part)

    def _evaluate(self, step: _Step) -> StepResult:
        """Run a step whole, or in two parts, as verification after a draft does."""
        if not step.enter:
            return self.executable.run(WHOLE, self.state, step.rows)
        first = replace(step.rows, outputs=step.rows.outputs[:0])
        hidden = self.executable.run(Part(leave=step.enter), self.state, first).hidden.copy()
        return self.executable.run(Part(enter=step.enter), self.state, step.rows, hidden)

    def _part(self, progress: _Progress, spare: Int32) -> tuple[Rows, list[_Expected]]:
        script, sequence = progress.script, progress.sequence
        if progress.in_prompt:
            positions = range(sequence.length, sequence.length + progress.next_rows)
            tokens = self.texts[script.text][positions.start : positions.stop]
            rows = random_prompt_rows(self.random, sequence, tokens, self.executable.max_path)
            return rows, [_Expected(progress, position, ()) for position in positions]
        tree = script.trees[progress.done - len(script.chunks)]
        tails = [progress.committed + tuple(tree.token[tree.path(row)].tolist()) for row in range(len(tree))]
        rows = random_tree_rows(self.random, sequence, tree, spare)
        return rows, [_Expected(progress, -1, tail) for tail in tails]

    def _advance(self, progress: _Progress, part: Rows) -> None:
        """Commit the chunk, or a random path of the tree."""
        if progress.in_prompt:
            progress.sequence.length += progress.next_rows
        else:
            tree = progress.script.trees[progress.done - len(progress.script.chunks)]
            path = tree.path(int(self.random.integers(len(tree))))
            sequence = progress.sequence
            home = sequence.home(np.arange(sequence.length, sequence.length + len(path), dtype=np.int32))
            self.executable.copy_slots(self.state, part.slots[path], home)
            self.events.append(_Copy(part.slots[path], home))
            progress.committed += tuple(tree.token[path].tolist())
            sequence.length += len(path)
        progress.done += 1

    def _compare(self, case: int, number: int, step: _Step, result: StepResult) -> None:
        self.steps += 1
        # Copied, as plain decoding may reuse the result's memory; sorted by history, so that it rarely rewinds.
        logits, candidates = np.array(result.logits), np.array(result.candidates)
        candidate_logits = np.array(result.candidate_logits)
        rows, expected = step.rows, step.expected
        outputs = rows.outputs.tolist()
        for output in sorted(range(len(outputs)), key=lambda output: expected[outputs[output]].tail):
            row = outputs[output]
            same = digest(logits[output]) == self._plain_digest(expected[row])
            best = likeliest(logits[output], self.executable.candidates)
            right = np.array_equal(best, candidates[output]) and np.array_equal(
                as_numbers(logits[output][best]).view(np.uint32), candidate_logits[output].view(np.uint32)
            )
            self.rows += 1
            if same and right:
                continue
            self.differences += 1
            if self.first is None:
                plain = self.executable.run(WHOLE, self.plain.state, self._plain_row(expected[row])).logits[0]
                difference = float(np.abs(logits[output].astype(np.float64) - plain).max())
                kernel, name = ("token choice", "candidates") if same else self._locate(expected[row])
                if kernel is None and step.enter:
                    kernel, name = f"entry after branch {step.enter}", "hidden"
                position = int(rows.positions[row])
                self.first = Divergence(case, number, row, len(expected), position, difference, kernel, name)

    def _plain_digest(self, expected: _Expected) -> bytes:
        owner = expected.owner
        if expected.position >= 0:
            return self.plain.text_digest(owner.script.text, expected.position)
        return self.plain.digest(owner.branch, expected.tail)

    def _plain_row(self, expected: _Expected) -> Rows:
        owner = expected.owner
        if expected.position >= 0:
            return self.plain.text_row(owner.script.text, expected.position)
        return self.plain.last_row(owner.branch, expected.tail)

    def _locate(self, expected: _Expected) -> tuple[str | None, str | None]:
        """Returns the first kernel, and its output, whose bits differ in a history.

        The case so far is run again: in an earlier step, a row whose logits were not requested may have left wrong keys
        and values in the cache, and the kernel that reads them is not to blame. The state is the same afterwards.
        """
        executable, origin = self.executable, None
        if not isinstance(executable, Traceable):
            return None, None
        for event in self.events:
            if isinstance(event, _Copy):
                executable.copy_slots(self.state, event.source, event.destination)
            elif origin is not None:
                self._evaluate(event)
            else:
                origin = self._differing(executable, event, expected)
        return origin or (None, None)

    def _differing(self, executable: Traceable, step: _Step, expected: _Expected) -> tuple[str, str] | None:
        """Run a step; return the first kernel, and its output, that differs in a row of the history `expected`."""
        results = executable.trace(self.state, step.rows)
        first, outputs = len(results), step.rows.outputs.tolist()
        for row, history in enumerate(step.expected):
            if not history.begins(expected):
                continue
            places = {"N": row, "M": outputs.index(row) if row in outputs else None}
            plain_results = executable.trace(self.plain.state, self._plain_row(history))
            for number, (found, plain) in enumerate(zip(results[:first], plain_results, strict=False)):
                place = places.get(found.along or "")
                if place is not None and found.value[place].tobytes() != plain.value[0].tobytes():
                    first = number
                    break
        return (results[first].kernel, results[first].output) if first < len(results) else None


def _some(random: Generator, running: list[_Progress], most_rows: int) -> list[_Progress]:
    """Returns at least one sequence; the next parts of all returned ones fit in one step."""
    unfinished = [progress for progress in running if not progress.finished]
    random.shuffle(unfinished)  # type: ignore[arg-type]
    chosen, total = unfinished[:1], unfinished[0].next_rows
    for progress in unfinished[1:]:
        if random.random() < 0.7 and total + progress.next_rows <= most_rows:
            chosen.append(progress)
            total += progress.next_rows
    return chosen


def likeliest(logits: Float32, count: int) -> Int32:
    """Returns the token ids of the `count` largest of logits [V], largest first, the lower id first on ties.

    NaN counts as -inf.
    """
    logits = as_numbers(logits)
    smallest = np.partition(logits, len(logits) - count)[len(logits) - count]
    found = np.flatnonzero(logits >= smallest)
    return found[np.argsort(-logits[found], kind="stable")][:count].astype(np.int32)
