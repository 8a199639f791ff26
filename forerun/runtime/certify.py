"""`forerun verify`: whether a compiled model keeps row determinism, on random schedules against plain decoding.

Every row of every step of a case is held bit for bit against the same history decoded one row at a time in a sequence
of its own. On a difference the first kernel whose output differs is named, where the executable can trace its kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError
from forerun.runtime.cache import BlockCache, CachedSequence
from forerun.runtime.cases import (
    SEQUENCES,
    Limits,
    Script,
    random_outputs,
    random_prompt_rows,
    random_scripts,
    random_tree_rows,
)
from forerun.runtime.executable import Executable, Float32, Int32, Rows, StepResult
from forerun.runtime.plain import PlainDecoder
from forerun.runtime.rows import join, reorder

TEXTS = 3


class KernelOutput(Protocol):
    """One result of one kernel."""

    @property
    def kernel(self) -> str: ...

    @property
    def output(self) -> str: ...

    @property
    def value(self) -> NDArray[Any]: ...


@runtime_checkable
class Traceable(Protocol):
    """An executable that can show what its kernels compute."""

    def trace(self, state: Any, rows: Rows) -> Sequence[KernelOutput]:
        """Run the step, and return all results in the order of computation.

        The leading axis of a value that belongs to rows is the step's rows, or its outputs where their number differs.
        """
        ...


@dataclass(frozen=True)
class Divergence:
    """The first row that differs."""

    case: int
    step: int  # of the case
    row: int  # of the step
    rows: int  # that the step has
    position: int  # of the row in its sequence
    largest_difference: float  # between the logits
    kernel: str | None  # None where the executable cannot trace
    output: str | None

    def __str__(self) -> str:
        kernel = f"kernel {self.kernel} (output {self.output})" if self.kernel else "an unknown kernel"
        return (
            f"case {self.case}, step {self.step}: row {self.row} of {self.rows}, at position {self.position}, differs "
            f"from plain decoding by up to {self.largest_difference:.3g}, first in {kernel}"
        )


@dataclass(frozen=True)
class VerifyReport:
    """What the cases showed."""

    cases: int
    steps: int
    rows: int  # compared
    differences: int  # rows that differ
    first: Divergence | None

    @property
    def exact(self) -> bool:
        return self.differences == 0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "exact": self.exact}

    def __str__(self) -> str:
        compared = f"{self.rows} rows of {self.steps} steps in {self.cases} cases"
        return f"{compared}: all bits equal" if self.exact else f"{compared}: {self.differences} differ\n{self.first}"


def certify(
    executable: Executable, cases: int = 200, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Run `cases` random cases, the same for the same seed. `progress` is told the cases done and their number."""
    if cases < 1:
        raise InvalidOptionError(f"cases must be at least 1, not {cases}")
    certifier = _Certifier(executable, seed)
    for case in range(cases):
        certifier.run_case(case)
        if progress:
            progress(case + 1, cases)
    return VerifyReport(cases, certifier.steps, certifier.rows, certifier.differences, certifier.first)


@dataclass(eq=False)
class _Progress:
    """One sequence of a case under way."""

    branch: int
    script: Script
    sequence: CachedSequence
    done: int = 0  # parts of the script
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


class _Certifier:
    def __init__(self, executable: Executable, seed: int) -> None:
        self.executable = executable
        self.random = np.random.default_rng(seed)
        self.limits = Limits.of(executable)
        self.texts = [
            self.random.integers(0, executable.vocabulary, self.limits.text, dtype=np.int32) for _ in range(TEXTS)
        ]
        self.plain = PlainDecoder(executable, self.texts, SEQUENCES, self.limits.positions)
        self.spare = executable.max_rows
        self.blocks = SEQUENCES * -(-self.limits.positions // executable.block) + -(-self.spare // executable.block) + 2
        self.state = executable.new_state(self.blocks)  # what earlier cases left there must not matter
        self.steps = self.rows = self.differences = 0
        self.first: Divergence | None = None

    def run_case(self, case: int) -> None:
        cache = BlockCache(
            self.blocks, self.executable.block, self.spare, self.random.permutation(self.blocks).tolist()
        )
        scripts = random_scripts(self.random, self.limits, TEXTS, self.executable.vocabulary)
        running: list[_Progress] = []
        for branch, script in enumerate(scripts):
            sequence = CachedSequence(self.executable.block, np.empty(0, np.int32))
            cache.reserve(sequence, self.limits.positions)
            self.plain.begin(branch, script.text, script.prompt)
            running.append(_Progress(branch, script, sequence))
        step = 0
        while any(not progress.finished for progress in running):
            self._run_step(case, step, _some(self.random, running, self.limits.rows), cache)
            step += 1

    def _run_step(self, case: int, step: int, chosen: list[_Progress], cache: BlockCache) -> None:
        """The next part of each chosen sequence's script, all in one step of random row order."""
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
        result = self.executable.run(self.state, rows)
        self._compare(case, step, rows, result, [expected[i] for i in order])
        for progress, part in zip(chosen, parts, strict=True):
            self._advance(progress, part)

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
            progress.committed += tuple(tree.token[path].tolist())
            sequence.length += len(path)
        progress.done += 1

    def _compare(self, case: int, step: int, rows: Rows, result: StepResult, expected: list[_Expected]) -> None:
        self.steps += 1
        # Copied, as plain decoding may reuse the result's memory; by history, so that plain decoding rarely goes back.
        logits, candidates = np.array(result.logits), np.array(result.candidates)
        candidate_logits = np.array(result.candidate_logits)
        outputs = rows.outputs.tolist()
        for output in sorted(range(len(outputs)), key=lambda output: expected[outputs[output]].tail):
            row = outputs[output]
            plain = self._plain_logits(expected[row])
            same = np.array_equal(logits[output].view(np.uint32), plain.view(np.uint32))
            best = likeliest(logits[output], self.executable.candidates)
            right = np.array_equal(best, candidates[output]) and np.array_equal(
                logits[output][best].view(np.uint32), candidate_logits[output].view(np.uint32)
            )
            self.rows += 1
            if same and right:
                continue
            self.differences += 1
            if self.first is None:
                kernel, name = ("token choice", "candidates") if same else self._locate(rows, output, expected[row])
                difference = float(np.abs(logits[output].astype(np.float64) - plain).max())
                position = int(rows.positions[row])
                self.first = Divergence(case, step, row, len(expected), position, difference, kernel, name)

    def _plain_logits(self, expected: _Expected) -> Float32:
        owner = expected.owner
        if expected.position >= 0:
            return self.plain.text_logits(owner.script.text, expected.position)
        return self.plain.logits(owner.branch, expected.tail)

    def _locate(self, rows: Rows, output: int, expected: _Expected) -> tuple[str | None, str | None]:
        """The first kernel, and its output, whose bits for the row differ between the step and plain decoding."""
        if not isinstance(self.executable, Traceable):
            return None, None
        owner, text = expected.owner, expected.owner.script.text
        if expected.position >= 0:
            token = int(self.texts[text][expected.position])
            plain_row = self.plain.text_row(text, expected.position, token)
        else:
            plain_row = self.plain.last_row(owner.branch, expected.tail)
        step_results = self.executable.trace(self.state, rows)
        plain_results = self.executable.trace(self.plain.state, plain_row)
        place = {len(rows.outputs): output, len(rows.tokens): int(rows.outputs[output])}  # by length of leading axis
        for found, plain in zip(step_results, plain_results, strict=True):
            size = found.value.shape[0] if found.value.ndim else None
            if size not in place:
                continue
            if np.array(found.value[place[size]]).tobytes() != np.array(plain.value[0]).tobytes():
                return found.kernel, found.output
        return None, None


def _some(random: Generator, running: list[_Progress], most_rows: int) -> list[_Progress]:
    """Sequences whose next parts fit in one step together, at least one."""
    unfinished = [progress for progress in running if not progress.finished]
    random.shuffle(unfinished)  # type: ignore[arg-type]
    chosen, total = unfinished[:1], unfinished[0].next_rows
    for progress in unfinished[1:]:
        if random.random() < 0.7 and total + progress.next_rows <= most_rows:
            chosen.append(progress)
            total += progress.next_rows
    return chosen


def likeliest(logits: Float32, count: int) -> Int32:
    """The token ids of the `count` largest of logits [V], largest first, the lower id first among equals."""
    smallest = np.partition(logits, len(logits) - count)[len(logits) - count]
    found = np.flatnonzero(logits >= smallest)
    return found[np.argsort(-logits[found], kind="stable")][:count].astype(np.int32)
