"""Layers that share an input: a part of a step says what the interpreter says, and drafting with it changes no bit.

After each verification, the draft's cache is that of a draft that has read the text directly.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import forerun
from forerun.codegen.program import Message, Value
from forerun.compiler import compile as compile_model
from forerun.distributed.driver import Driver
from forerun.errors import InvalidOptionError
from forerun.execute.branches import StepPart, _buffers  # pyright: ignore[reportPrivateUsage]
from forerun.execute.tvm import calls
from forerun.execute.tvm.batching import batches
from forerun.runtime.drafters.draft_model import DraftModel
from forerun.runtime.engine import Engine
from forerun.runtime.executable import WHOLE, Executable, Part, StepResult
from forerun.runtime.model import CompiledModel
from forerun.runtime.rows import reorder
from tests.exactness.test_parts import Trial, same_bits
from tests.models import FAMILIES

DEEP: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 5},
    "olmo2": {"num_hidden_layers": 5},  # norms behind the branches
    "gpt2": {"n_layer": 5},
    "gpt_neox": {"num_hidden_layers": 5},  # attention and feed-forward part add to one value
    "bloom": {"n_layer": 5},
    "qwen2_moe": {"num_hidden_layers": 3},
}
FIXED = forerun.Fixed(12)
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "seed": 4}
PROMPT = [5, 9, 2, 7, 11, 5, 9, 2, 3, 1, 8, 5, 9]


@cache
def executable(family: str, target: str) -> Executable:
    return compile_model(FAMILIES[family](**DEEP[family]), "autoregressive", target=target, max_length=64).executable


def random_part(random: np.random.Generator, count: int) -> Part:
    skipped = frozenset(np.flatnonzero(random.random(count) < 0.2).tolist())
    return Part(leave=int(random.integers(count // 2, count + 1)), skipped=skipped, parallel=int(random.integers(2, 6)))


@pytest.mark.parametrize("family", DEEP)
def test_a_part_means_what_the_interpreter_says(family: str) -> None:
    compiled, reference = executable(family, "cpu"), executable(family, "reference")
    random = np.random.default_rng(5)
    for seed in range(8):
        part = random_part(random, len(compiled.branches)) if seed > 2 else Part(parallel=(2, 3, 9)[seed])
        ours, meant, alone = (
            Trial(each, seed).run(own)
            for each, own in ((compiled, part), (reference, part), (compiled, replace(part, parallel=1)))
        )
        np.testing.assert_allclose(ours.logits, meant.logits, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(ours.hidden, meant.hidden, rtol=2e-3, atol=2e-3)
        assert seed > 2 or not np.allclose(ours.hidden, alone.hidden, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("target", ["c"])
def test_other_back_ends_agree(target: str) -> None:
    for seed in range(3):
        part = Part(parallel=2 + seed)
        ours, meant = (Trial(executable("llama", each), seed).run(part) for each in (target, "reference"))
        np.testing.assert_allclose(ours.logits, meant.logits, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(ours.hidden, meant.hidden, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_rows_are_deterministic(family: str) -> None:
    trial, part = Trial(executable(family, "cpu"), seed=9), Part(parallel=3)
    together = trial.run(part)
    order = np.random.default_rng(1).permutation(len(trial.rows.tokens))
    shuffled = trial.run(part, rows=reorder(trial.rows, order))
    assert shuffled.logits.tobytes() == together.logits.tobytes()
    assert shuffled.hidden.tobytes() == together.hidden[order].tobytes()


def test_entered_behind_its_first_branches_a_part_begins_a_group_there() -> None:
    for each in (executable("llama", "cpu"), executable("llama", "reference")):
        whole, halves = Trial(each, 3), Trial(each, 3)
        expected = whole.run(Part(parallel=2))
        first = halves.run(Part(leave=4, parallel=2), rows=replace(halves.rows, outputs=halves.rows.outputs[:0]))
        second = halves.run(Part(enter=4, parallel=2), first.hidden)  # a group of two layers has four branches
        assert second.logits.tobytes() == expected.logits.tobytes()
        assert whole.cached().tobytes() == halves.cached().tobytes()


@pytest.mark.parametrize("family", ["llama", "olmo2", "gpt_neox", "bloom"])
def test_kernels_side_by_side_give_the_bits_of_one_after_another(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: Any = executable(family, "cpu")
    random = np.random.default_rng(3)
    for seed in range(5):
        part = random_part(random, len(compiled.branches)) if seed else Part(parallel=5)
        runs = {False: Trial(compiled, seed), True: Trial(compiled, seed)}
        found: list[tuple[int, int, StepResult]] = []
        for batched, trial in runs.items():
            with monkeypatch.context() as patched:
                if not batched:
                    patched.setattr(calls, "batches", lambda part: [])
                compiled._parts.clear()
                result = trial.run(part)
                made = compiled.part(part)[0]
                found.append((len(made.calls), made.copies, result))
        compiled._parts.clear()
        (count, copies, expected), (fewer, more, result) = found
        assert same_bits(result, expected)
        assert runs[False].cached().tobytes() == runs[True].cached().tobytes()
        assert (copies, count >= fewer) == (1, True)
        assert (fewer < count) == (more > 1)
        assert seed > 0 or (more == 5 and count - fewer >= 4 * 2), "of five layers, two kernels or more in one call"


def test_layers_that_depend_on_each_other_run_one_after_another() -> None:
    """Through a state, a kernel outside branches, or a message; and where their kernels are not equally many."""
    program: Any = executable("llama", "cpu").step  # pyright: ignore
    part = Part(parallel=5)
    assert [len(each.layers) for each in batches(StepPart(program, part))] == [5]
    kernels = list(program.kernels)
    last = next(each for each in reversed(kernels) if each.branch == 8)
    at = kernels.index(last)
    [launch] = last.launches
    keys = next(each for kernel in kernels for each in kernel.launches[-1].operands if each.kind == "state")
    value = Value("x", ("N",), "f32", 0)
    for changed in (
        replace(last, launches=(replace(launch, operands=(*launch.operands, keys)),)),
        replace(last, branch=None),
        replace(last, message=Message("x", value, received=False)),
    ):
        own = (*kernels[:at], changed, *kernels[at:])
        assert batches(StepPart(replace(program, entries=(replace(program.step, kernels=own),)), part)) == []
    first = next(each for each in kernels if each.branch == 8)
    own = tuple(each for each in kernels if each is not first)
    assert batches(StepPart(replace(program, entries=(replace(program.step, kernels=own),)), part)) == []


def test_no_value_is_overwritten_before_its_last_reader() -> None:
    """Of random branches and groups, by a store of three buffers."""
    random = np.random.default_rng(0)
    for _ in range(300):
        layers = int(random.integers(1, 12))
        branches = [(layer, kind) for layer in range(layers) for kind in ("attention", "feed_forward")]
        part = replace(random_part(random, len(branches)), enter=int(random.integers(0, layers)))
        evaluated, inputs = part.branches(len(branches)), part.inputs(branches)
        buffers = _buffers(evaluated, inputs)
        store: dict[int, int] = {buffers[0]: evaluated[0] if evaluated else 0}
        for at, branch in enumerate(evaluated):
            value = inputs.get(branch, branch)
            place = buffers[evaluated.index(value)]
            assert store[place] == value
            assert store[buffers[at]] == branch
            assert buffers[at + 1] not in (place, buffers[at]), "a kernel writes where another of its branch reads"
            store[buffers[at + 1]] = evaluated[at + 1] if at + 1 < len(evaluated) else len(branches)


# --- what cannot be done is refused


class Gated(nn.Module):
    """Attentions that scale the stream by what they find in it: one kernel reads it as input and as addend."""

    def __init__(self, attention: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(24, 16)
        self.attention = attention
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(16, 16) for _ in range(3)) for _ in range(2))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        for query, key, out in self.layers:  # pyright: ignore
            found = x
            if self.attention:
                q, k, v = (each(x).view(1, -1, 2, 8).transpose(1, 2) for each in (query, key, key))
                found = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                found = found.transpose(1, 2).reshape(1, -1, 16)
            x = x + out(found) * x
        return x @ self.embedding.weight.T


@pytest.mark.parametrize("target", ["cpu", "reference", "c"])
def test_a_kernel_that_reads_the_stream_in_both_ways_is_refused(target: str) -> None:
    made = compile_model(Gated(), "autoregressive", target=target, max_length=64).executable
    trial = Trial(made, 0)
    trial.run(Part(skipped=frozenset({0})))
    with pytest.raises(InvalidOptionError, match="both as"):
        trial.run(Part(parallel=2))


def test_what_has_no_such_part_is_refused() -> None:
    trial = Trial(executable("llama", "cpu"), 0)
    with pytest.raises(InvalidOptionError, match="groups of at least one layer, not of 0"):
        trial.run(Part(parallel=0))
    with pytest.raises(InvalidOptionError, match="several ranks"):
        Driver.run_part(object(), Part(parallel=2), object(), trial.rows, None, None)  # pyright: ignore
    with pytest.raises(InvalidOptionError, match="give drafter or parallel_layers"):
        forerun.DraftModel("x", drafter=forerun.TokenRecycling(), parallel_layers=2)
    with pytest.raises(InvalidOptionError, match="parallel_layers"):
        forerun.DraftModel("x", parallel_layers=0)
    bare = forerun.compile(Gated(attention=False), "autoregressive", max_length=64)
    with pytest.raises(InvalidOptionError, match="no 4 consecutive layers of the draft model"):
        drafting(bare, bare, 4)
    gated = forerun.compile(Gated(), "autoregressive", max_length=64)
    with pytest.raises(InvalidOptionError, match="both as"):
        drafting(gated, gated, 2)
    assert drafting(gated, gated, 1).generate(PROMPT, 8).token_ids == gated.generate(PROMPT, 8).token_ids


# --- drafting


@cache
def model(family: str) -> CompiledModel:
    return forerun.compile(FAMILIES[family](**DEEP[family]), "autoregressive", max_length=192)


def drafting(target: CompiledModel, draft: CompiledModel, layers: int, **options: Any) -> CompiledModel:
    spec = forerun.DraftModel(draft, vocabulary="same", parallel_layers=layers, **options)
    return forerun.with_strategy(target, forerun.TreeSpec((spec,), FIXED))


@pytest.mark.parametrize("layers", [2, 4])
@pytest.mark.parametrize("draft", ["llama", "gpt_neox"])
def test_bits_are_those_of_plain_decoding(draft: str, layers: int) -> None:
    target = model("llama")
    made = drafting(target, model(draft), layers)
    for options in ({}, SAMPLED):
        expected = target.generate(PROMPT, 40, return_logits=True, **options)
        for _ in range(2):
            found = made.generate(PROMPT, 40, return_logits=True, **options)
            assert found.has_bits_of(expected)
            assert found.stats.rows > found.stats.steps, "nothing was proposed"


class Watched:
    """A drafter whose cache is compared, whenever it changes, with that of an engine that reads the text directly."""

    def __init__(self, drafter: DraftModel) -> None:
        self.drafter, self.compared, self.parts = drafter, 0, list[Part]()
        self._observe, self._propose, self._run = drafter.observe, drafter.propose_all, drafter.engine.run
        self.rows: list[int] = []

    def observe(self, *arguments: Any) -> None:
        self._observe(*arguments)
        self.compare()

    def propose_all(self, *arguments: Any) -> Any:
        found = self._propose(*arguments)
        self.compare()
        return found

    def run(self, rows: Any, part: Part = WHOLE, *arguments: Any, **options: Any) -> Any:
        self.parts.append(part)
        self.rows.append(len(rows.tokens))
        return self._run(rows, part, *arguments, **options)

    def compare(self) -> None:
        for draft in self.drafter._drafts.values():  # pyright: ignore
            tokens = np.array(draft.cached, np.int32)
            assert len(tokens) == draft.sequence.length
            direct = Engine(self.drafter.engine.executable)
            with direct.sequence(len(tokens) + 1) as sequence:
                direct.prefill(sequence, tokens)
                ours, meant = self.words(self.drafter.engine, draft.sequence), self.words(direct, sequence)
            assert ours.tobytes() == meant.tobytes()
            self.compared += len(tokens)

    def words(self, engine: Engine, sequence: Any) -> Any:
        """[n, w] what is cached at a sequence's positions."""
        slots = sequence.home(np.arange(sequence.length, dtype=np.int32))
        compiled: Any = engine.executable
        return engine.state.numbers[compiled._places(slots)].view(np.uint32)


@pytest.mark.parametrize("draft", ["llama", "gpt_neox"])
@pytest.mark.parametrize("seed", range(3))
def test_after_each_verification_the_cache_is_that_of_a_draft_that_read_the_text(draft: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = forerun.Shape(deepest=int(random.integers(2, 12)), beam=int(random.integers(1, 4)))
    made = drafting(model("llama"), model(draft), int(random.integers(2, 6)), shape=shape)
    watched = Watched(made.drafter)  # pyright: ignore
    watched.drafter.observe = watched.observe
    watched.drafter.propose_all = watched.propose_all
    watched.drafter.engine.run = watched.run
    prompt = random.integers(0, 90, 9).tolist()
    options = {} if seed == 0 else {"do_sample": True, "temperature": 0.5, "seed": seed}
    found = made.generate(prompt, 40, **options)
    assert watched.compared > 40 * found.stats.steps, "a text of more and more tokens, twice in each iteration"
    assert {each.parallel for each in watched.parts} == {1, watched.drafter.part.parallel}
    # One launch of the whole draft in each iteration reads what was committed, the next root included.
    exact = [rows for rows, part in zip(watched.rows, watched.parts, strict=True) if part == WHOLE]
    assert len(exact) <= 1 + found.stats.steps
    assert max(exact[2:]) <= shape.deepest + 1


def test_without_groups_accepted_rows_are_kept() -> None:
    """The same draft, whose rows are those of the whole draft, reads two tokens in each first launch."""
    made = drafting(model("llama"), model("llama"), 1, shape=forerun.Shape(deepest=4, beam=1, children=1))
    watched = Watched(made.drafter)  # pyright: ignore
    watched.drafter.engine.run = watched.run
    assert made.generate(PROMPT, 40).stats.accepted_length == 5.0
    assert set(watched.parts) == {WHOLE}
    assert max(watched.rows[2:]) == 2
