"""A part of a step agrees with the interpreter, and two adjoining parts give the bits of the whole step."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from forerun.compiler import compile as compile_model
from forerun.errors import InvalidOptionError
from forerun.runtime.engine import Engine
from forerun.runtime.executable import WHOLE, Executable, Part, Rows, StepResult
from forerun.runtime.rows import reorder, tree_rows, tree_slots
from forerun.runtime.tree import TreeBuilder
from tests.models import FAMILIES

COMPILED = ("llama", "gemma2", "gpt2", "gpt_neox", "falcon", "bloom")
PROMPT = 21


@cache
def executables(family: str) -> tuple[Executable, Executable]:
    """One model on the CPU and in the interpreter."""
    model = FAMILIES[family]()
    return tuple(  # pyright: ignore
        compile_model(model, "autoregressive", target=target, max_length=64).executable
        for target in ("cpu", "reference")
    )


class Trial:
    """A random tree after a random prompt; every run starts from the same cache."""

    def __init__(self, executable: Executable, seed: int, rows: int = 7) -> None:
        random = np.random.default_rng(seed)
        self.engine = Engine(executable)
        self.sequence = self.engine.sequence(PROMPT + 10).__enter__()
        self.engine.prefill(self.sequence, random.integers(0, executable.vocabulary, PROMPT, dtype=np.int32))
        builder = TreeBuilder(3)
        while len(builder) < rows:
            parent = int(random.integers(len(builder)))
            builder.add(parent, int(random.integers(executable.vocabulary)), 0.5)
        tree = builder.build()
        self.engine.cache.reserve(self.sequence, PROMPT + tree.height + 1)
        slots, _ = tree_slots(self.sequence, tree, self.engine.cache.spare)
        self.rows = tree_rows(self.sequence, tree, slots)

    def run(self, part: Part = WHOLE, hidden: Any = None, rows: Rows | None = None) -> StepResult:
        result = self.engine.executable.run(part, self.engine.state, rows or self.rows, hidden)
        return StepResult(*(np.array(each) for each in vars(result).values()))

    def cached(self) -> np.ndarray[Any, Any]:
        state = self.engine.state
        if isinstance(state, dict):
            return np.concatenate([each.numpy().ravel() for pair in state.values() for each in pair])
        return state.numbers.copy()


def same_bits(one: StepResult, other: StepResult) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


@pytest.mark.parametrize("family", COMPILED)
def test_two_parts_are_the_whole(family: str) -> None:
    for executable in executables(family):
        count = len(executable.branches)
        assert count >= 2
        for leave in range(count + 1):
            whole, halves = (Trial(executable, seed=leave) for _ in range(2))
            expected = whole.run()
            first = halves.run(Part(leave=leave), rows=replace(halves.rows, outputs=halves.rows.outputs[:0]))
            assert first.logits.shape[0] == 0
            second = halves.run(Part(enter=leave), first.hidden) if leave else halves.run()
            assert same_bits(second, expected)
            assert np.array_equal(whole.cached().view(np.uint32), halves.cached().view(np.uint32))


@pytest.mark.parametrize("family", COMPILED)
def test_a_part_means_what_the_interpreter_says(family: str) -> None:
    compiled, reference = executables(family)
    count = len(compiled.branches)
    random = np.random.default_rng(5)
    assert [(each.layer, each.kind) for each in compiled.branches] == [
        (each.layer, each.kind) for each in reference.branches
    ]
    for seed in range(8):
        skipped = frozenset(np.flatnonzero(random.random(count) < 0.5).tolist())
        leave = int(random.integers(0, count + 1))
        part = Part(leave=leave, skipped=skipped)
        ours, meant = (Trial(each, seed).run(part) for each in (compiled, reference))
        np.testing.assert_allclose(ours.logits, meant.logits, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(ours.hidden, meant.hidden, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", COMPILED)
def test_rows_of_a_part_are_deterministic(family: str) -> None:
    compiled, _ = executables(family)
    part = Part(skipped=frozenset({1}))
    trial = Trial(compiled, seed=9)
    together = trial.run(part)
    order = np.random.default_rng(1).permutation(len(trial.rows.tokens))
    shuffled = trial.run(part, rows=reorder(trial.rows, order))
    assert shuffled.logits.tobytes() == together.logits.tobytes()
    assert shuffled.hidden.tobytes() == together.hidden[order].tobytes()


def test_a_skipped_branch_writes_no_keys() -> None:
    compiled, _ = executables("llama")
    trial = Trial(compiled, seed=2)
    before = trial.cached()
    trial.run(Part(skipped=frozenset(range(len(compiled.branches)))))
    assert np.array_equal(before, trial.cached())


def test_a_part_that_does_not_fit_is_refused() -> None:
    for executable in executables("llama"):
        trial = Trial(executable, seed=0)
        for part, hidden in ((Part(enter=9), None), (Part(enter=2, leave=1), None), (Part(enter=1), None)):
            with pytest.raises(InvalidOptionError):
                trial.run(part, hidden)
        with pytest.raises(InvalidOptionError):
            trial.run(WHOLE, np.zeros((7, executable.width), np.float32))
