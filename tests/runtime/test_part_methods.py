"""Each method's choice of a part, against its paper's formula or by trying everything."""

from itertools import combinations, pairwise

import numpy as np
import pytest

import forerun
from forerun.codegen.tvm.layout import state_places
from forerun.errors import InvalidOptionError
from forerun.runtime.cache import StepSlots
from forerun.runtime.drafters.base import Context
from forerun.runtime.drafters.parts.clasp import Clasp, similarity, skip_set
from forerun.runtime.drafters.parts.decayed_depth import DecayedDepth
from forerun.runtime.drafters.parts.layers import branch_behind, layer_branches
from forerun.runtime.drafters.parts.replay import Replay
from forerun.runtime.drafters.parts.skip_decode import SkipDecode
from forerun.runtime.drafters.parts.swift import Swift, promise
from forerun.runtime.drafters.parts.uniform import Uniform, evenly
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Branch, Part
from forerun.runtime.rows import prompt_rows, same_position
from tests.models import FAMILIES

LAYERS = 6
TOKENS = [5, 9, 2, 7, 11, 5, 9, 2, 3, 1, 8, 5, 9, 4]


class Shaped:
    """An engine with `layers` layers of two branches each."""

    def __init__(self, layers: int) -> None:
        kinds = ("attention", "feed_forward")
        self.branches = tuple(Branch(layer, kind, 1) for layer in range(layers) for kind in kinds)
        self.executable = self
        self.max_path = self.max_outputs = 64


def layers_left(part: Part, layers: int) -> list[int]:
    """The layers that a part evaluates; both branches of a layer go together."""
    kept = part.branches(2 * layers)
    assert all((branch ^ 1) in kept for branch in kept)
    return sorted({branch // 2 for branch in kept})


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = forerun.compile(FAMILIES["llama"](num_hidden_layers=LAYERS), strategy="autoregressive", max_length=64)
    return model.engine


@pytest.fixture
def slots(engine: Engine):
    """The slots of a sequence whose tokens, except the last, are in the cache."""
    with engine.sequence(len(TOKENS) + 8) as sequence:
        engine.prefill(sequence, np.array(TOKENS[:-1], np.int32))
        yield StepSlots(sequence, engine.cache.spare)


@pytest.fixture
def context() -> Context:
    return Context(list(TOKENS))


@pytest.mark.parametrize(("speedup", "kept"), [(1.0, 12), (1.5, 8), (2.0, 6), (3.0, 4), (100.0, 1)])
def test_uniform_keeps_layers_at_even_distances(speedup: float, kept: int) -> None:
    left = layers_left(Uniform(speedup).build(Shaped(12), None).part(0), 12)
    assert len(left) == kept
    assert left[0] == 0
    if kept > 1:
        assert left[-1] == 11
        assert max(np.diff(left)) - min(np.diff(left)) <= 1  # balanced


@pytest.mark.parametrize(("count", "kept"), [(5, 3), (30, 7), (4, 4), (9, 1)])
def test_evenly(count: int, kept: int) -> None:
    chosen = evenly(count, kept)
    assert len(set(chosen)) == kept
    assert 0 <= min(chosen) <= max(chosen) < count


def test_depth_decays_as_in_the_paper() -> None:
    """floor(L alpha^i) layers, with L the layers that the root keeps."""
    method = DecayedDepth(start=0.8, alpha=0.85).build(Shaped(20), None)
    kept = [layers_left(method.part(depth), 20) for depth in range(10)]
    assert [len(each) for each in kept] == [int(0.8 * 20 * 0.85**depth) for depth in range(10)]
    assert all(set(deeper) <= set(above) for above, deeper in pairwise(kept))


def test_skip_decode_falls_linearly_and_keeps_upper_layers() -> None:
    method = SkipDecode(most=0.8, least=0.4, falls_to=4, warm_up=1).build(Shaped(20), None)
    kept = [layers_left(method.part(depth), 20) for depth in range(7)]
    assert [len(each) for each in kept] == [16, 14, 12, 10, 8, 8, 8]
    assert all(each[0] == 0 and each[1:] == list(range(20 - len(each) + 1, 20)) for each in kept)


def test_layers_of_a_model_with_parallel_residuals() -> None:
    parallel = Shaped(0)
    parallel.branches = tuple(Branch(layer, "layer", 1) for layer in range(4))
    assert layer_branches(parallel) == [(0,), (1,), (2,), (3,)]
    assert branch_behind(layer_branches(parallel), 3) == 3
    assert branch_behind(layer_branches(Shaped(4)), 3) == 6


def test_replayed_tokens_say_what_they_said(engine: Engine, context: Context, slots: StepSlots) -> None:
    """The head after all branches chooses what plain decoding chose; the cache stays as it was."""
    before = engine.state.numbers.copy()
    replayed = Replay(engine, 6).begin(context, slots)
    assert replayed is not None
    assert replayed.expected.tolist() == TOKENS[-6:]
    replayed.advance(5)
    chosen = replayed.exit(2 * LAYERS)
    with engine.sequence(len(TOKENS)) as sequence:
        tokens = np.array(TOKENS[:-1], np.int32)
        rows = prompt_rows(sequence, tokens, np.arange(len(tokens), dtype=np.int32))
        engine.cache.reserve(sequence, len(tokens))
        rows = prompt_rows(sequence, tokens, np.arange(len(tokens), dtype=np.int32))
        expected = engine.run(rows).candidates[-6:, 0]
    assert chosen.tolist() == expected.tolist()
    kept = slots.sequence.home(np.arange(len(TOKENS) - 1, dtype=np.int32))
    record = state_places(engine.executable.step).record  # pyright: ignore
    for block in {int(slot) // engine.executable.block for slot in kept}:
        where = slice(block * record, (block + 1) * record)
        assert np.array_equal(engine.state.numbers[where], before[where])


def test_clasp_finds_the_nearest_state_of_all(engine: Engine, context: Context, slots: StepSlots) -> None:
    """Where one layer is skipped, the dynamic programme is exact: it is compared with all choices."""
    layers = layer_branches(engine.executable)
    sequence = slots.sequence
    rows = same_position(sequence, TOKENS[-2], slots.borrow(1))
    exact = engine.run(rows).hidden[0].copy()

    def near(skipped: set[int]) -> float:
        part = Part(skipped=frozenset(branch for layer in skipped for branch in layers[layer]))
        return float(similarity(engine.run(rows, part).hidden.copy(), exact)[0])

    for count in (1, 2, 3):
        found = skip_set(engine, context, slots, layers, count)
        assert len(found) == count
        scores = sorted((near(set(each)) for each in combinations(range(LAYERS), count)), reverse=True)
        assert near(found) >= (scores[0] - 1e-6 if count == 1 else scores[len(scores) // 4])


SHALLOW = {
    "swift, too few inner layers": (Swift(), 2, 4),
    "swift, a small share": (Swift(skipped=0.05), 4, 6),
    "swift, a large share": (Swift(skipped=0.9), 3, 18),
    "clasp": (Clasp(), 1, 2),
}


@pytest.mark.parametrize("case", SHALLOW)
def test_a_model_with_too_few_layers_is_told_how_many_it_needs(case: str) -> None:
    spec, layers, least = SHALLOW[case]
    with pytest.raises(InvalidOptionError, match=f"at least {least} layers; this one has {layers}:"):
        spec.build(Shaped(layers), None)  # type: ignore[arg-type]


def test_swift_keeps_the_best_set_and_stops(engine: Engine, context: Context, slots: StepSlots) -> None:
    spec = Swift(skipped=0.3, window=8, patience=12, bayes_every=3)
    search = spec.build(engine, None)
    seen: list[float] = []
    for _ in range(200):
        search.prepare(context, slots, price=0.0)
        seen.append(search.score)
        if search.converged:
            break
    assert search.converged
    assert len(seen) < 200
    assert seen == sorted(seen)
    replayed = Replay(engine, 8).begin(context, slots)
    assert replayed is not None
    assert search.score == (replayed.draft(search.part(0)) == replayed.expected).mean()
    skipped = search.part(0).skipped
    assert len(skipped) == round(0.3 * 2 * LAYERS)
    assert not skipped & {0, 1, 2 * LAYERS - 2, 2 * LAYERS - 1}


def test_bayesian_steps_find_the_branches_that_matter() -> None:
    """Scores fall with each of three branches that a set skips, so promising sets skip fewer of them."""
    random = np.random.default_rng(0)
    tried = random.random((60, 12)) < 0.4
    scores = 1.0 - 0.3 * tried[:, :3].sum(axis=1)
    guesses = random.random((400, 12)) < 0.4
    best = guesses[np.argsort(-promise(tried, scores, guesses))[:20]]
    assert best[:, :3].mean() < 0.5 * guesses[:, :3].mean()


def test_dynamic_exit_takes_the_exit_with_most_tokens_for_its_bytes(
    engine: Engine, context: Context, slots: StepSlots
) -> None:
    method = forerun.DynamicExit(exits=5, window=8).build(engine, None)
    for _ in range(30):  # until the evidence of this context outweighs the beginning
        method.prepare(context, slots, price=0.0)
    replayed = Replay(engine, 8).begin(context, slots)
    assert replayed is not None
    best = (0.0, 0, 0)
    head = engine.executable.head_bytes
    total = head + sum(branch.bytes for branch in engine.executable.branches)
    for layer in range(1, LAYERS):
        rate = float((replayed.exit(2 * layer) == replayed.expected).mean())
        share = (sum(branch.bytes for branch in engine.executable.branches[: 2 * layer]) + head) / total
        for length in range(1, 9):
            tokens = length + 1 if rate == 1 else (1 - rate ** (length + 1)) / (1 - rate)
            best = max(best, (tokens / (length * share + 1), 2 * layer, length))
    assert (method.part(0), method.deepest) == (Part(leave=best[1]), best[2])
