"""The head of a Triton step: tokens chosen in its tiles, without logits in memory, against numpy on the logits."""

import math

import numpy as np
import pytest
import torch
from steps import ROW_TYPES, Step, decoder, rows_of
from triton_steps import LIMITS, interpreted, poisoned_state

from forerun import ir
from forerun.codegen.program import Config, Source
from forerun.codegen.triton.assembly import used_functions
from forerun.codegen.triton.lowering import emit
from forerun.execute.triton import interpreter
from forerun.execute.triton.configs import candidates, first_config
from forerun.execute.triton.sources import load
from forerun.runtime.executable import WHOLE, Draw
from forerun.runtime.sampling import SamplingSettings, random_row, sample_token
from tests.compiled import planned_step

LARGEST = 2**64 - 1
DRAWS = [Draw(7, 0, 1.0), Draw(LARGEST, 3, 0.3), Draw(2**63 + 5, LARGEST, 4.0), Draw(0, 2**32, 1e-3), Draw(11, 1, 50.0)]


def two_sequences(count: int = 9, vocabulary: int = 331, seed: int = 0):
    """Rows of two sequences' prompts, with outputs in any order, some of them twice."""
    generator = np.random.default_rng(seed)
    first = count // 2
    positions = np.concatenate([np.arange(first), np.arange(count - first)])
    sequences = (np.arange(count) >= first).astype(int)
    tables = np.array([[4, 2, 7], [1, 0, 3]])
    slots = tables[sequences, positions // 16] * 16 + positions % 16
    outputs = generator.permutation(np.r_[:count, :2])
    tokens = generator.integers(0, vocabulary, count)
    return rows_of(tokens, positions, sequences, slots, positions + 1, np.zeros((count, 1)), tables, outputs)


def expected_draw(logits, rows, draws):
    """The tokens that the host's `sample_token` chooses from logits [M, V]."""
    found = []
    for row, output in zip(logits, rows.outputs, strict=True):
        draw, position = draws[rows.sequences[output]], int(rows.positions[output]) + 1
        if draw is None:
            found.append(int(row.argmax()))
        else:
            settings = SamplingSettings(do_sample=True, temperature=draw.temperature, seed=draw.seed)
            found.append(sample_token(row, settings, draw.identifier, position))
    return found


def run(executable, rows, draws=None):
    """Runs a step on poisoned memory."""
    executable.launcher.arena.fill_(math.nan)
    return executable.run(WHOLE, poisoned_state(executable), rows, draws=draws)


def assert_chosen(result, rows, draws):
    """Candidates and sampled tokens are those of the logits, which are requested last."""
    ids, values, drawn = result.candidates.copy(), result.candidate_logits.copy(), result.drawn.copy()
    logits = result.logits
    assert np.array_equal(ids, np.argsort(-logits, 1, kind="stable")[:, : ids.shape[1]])
    assert values.tobytes() == np.take_along_axis(logits, ids, 1).tobytes()
    assert drawn.tolist() == expected_draw(logits, rows, draws)


RANDOM_TILE = """
@triton.jit
def kernel(sizes, words, numbers, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    seed, identifier = load_words(words + row * 6, row < ROWS), load_words(words + row * 6 + 2, row < ROWS)
    position = load_words(words + row * 6 + 4, row < ROWS)
    found = random_tile(tl.load(sizes), position, seed, identifier, BLOCK)
    tl.store(numbers + row * BLOCK + tl.arange(0, BLOCK)[None, :], found)
"""


@pytest.mark.parametrize(("first", "block"), [(0, 32), (64, 64), (4 * 31, 4), (2**31 - 64, 16)])
def test_random_numbers_are_numpys(first: int, block: int) -> None:
    keys = [(0, 0, 0), (1, 2, 3), (LARGEST, 2**63 + 9, 2**31 - 1), (12345678901234567, LARGEST, 4096)]
    parts = ["import triton\nimport triton.language as tl\n", *used_functions(RANDOM_TILE), RANDOM_TILE.strip() + "\n"]
    module = load(Source("random_tile", "rows", "\n\n".join(parts), "", ()), interpret=True)
    words = torch.from_numpy(np.array(keys, np.uint64).view(np.int32))
    numbers = torch.full((len(keys), block), math.nan, dtype=torch.float64)
    sizes = torch.tensor([first], dtype=torch.int32)
    interpreter.run(module.kernel, (1,), [sizes, words, numbers], {"BLOCK": block, "ROWS": len(keys)})
    for (seed, identifier, position), found in zip(keys, numbers.numpy(), strict=True):
        if first < 1000:
            expected = random_row(seed, identifier, position, first + block)[first:]
        else:  # the stream from a later block on
            philox = np.random.Philox(
                key=np.array([seed, identifier], np.uint64), counter=np.array([first // 4, 0, position, 0], np.uint64)
            )
            expected = np.random.Generator(philox).random(block)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("vocabulary", [331, 321, 352])
def test_candidates_and_draws_are_those_of_the_logits(vocabulary: int) -> None:
    module, weights = decoder(layers=1, vocabulary=vocabulary)
    executable = interpreted(module, weights.__getitem__)
    rows = two_sequences(vocabulary=vocabulary)
    assert executable.draws
    for draws in ([DRAWS[0], DRAWS[1]], [None, DRAWS[2]], [DRAWS[3], None], [DRAWS[4], DRAWS[0]], [None, None]):
        assert_chosen(run(executable, rows, draws), rows, draws)


def test_two_seeds_two_positions_and_two_identifiers_draw_apart() -> None:
    module, weights = decoder(layers=1)
    executable, rows = interpreted(module, weights.__getitem__), two_sequences()
    found = [tuple(run(executable, rows, [Draw(seed, 0, 50.0), Draw(seed, 1, 50.0)]).drawn) for seed in range(4)]
    assert len(set(found)) == 4
    assert all(len(set(each)) > len(each) // 2 for each in found)


def test_a_step_that_is_not_told_how_to_draw_draws_nothing() -> None:
    module, weights = decoder(layers=1)
    executable, rows = interpreted(module, weights.__getitem__), two_sequences()
    drawn = run(executable, rows, [DRAWS[4], DRAWS[4]]).drawn.copy()
    assert run(executable, rows).drawn.shape == (0,)
    greedy = run(executable, rows, [None, None])
    assert np.array_equal(greedy.drawn, greedy.candidates[:, 0])
    assert not np.array_equal(greedy.drawn, drawn)


def test_of_equal_logits_the_lower_id_is_chosen() -> None:
    module, weights = decoder(layers=1)
    generator = np.random.default_rng(4)
    same = generator.integers(0, 29, 331)  # tokens of one embedding lie in many tiles
    weights["embedding"] = weights["embedding"][torch.from_numpy(same)]
    executable, rows = interpreted(module, weights.__getitem__), two_sequences()
    result = run(executable, rows, [DRAWS[0], DRAWS[4]])
    assert_chosen(result, rows, [DRAWS[0], DRAWS[4]])
    equal = result.candidate_logits[:, 1:] == result.candidate_logits[:, :-1]
    assert equal.mean() > 0.5
    assert (np.diff(result.candidates, axis=1)[equal] > 0).all()


@pytest.mark.parametrize("rows", [3, 20])
def test_no_division_changes_what_is_chosen(rows: int) -> None:
    module, weights = decoder(layers=1)
    step, draws = two_sequences(rows), [DRAWS[0], DRAWS[1]]
    found: set[bytes] = set()
    blocks: set[int] = set()
    for number in range(9):

        def choose(launcher, launch, rows, shared, pointers, sizes, number=number) -> Config:
            first = first_config(launch, rows, shared)
            if launch.grid.kind != "head":
                return Config(64, first.rows) if launch.grid.kind == "products" else first
            options = candidates(launch, rows, shared)
            blocks.add(options[number % len(options)].block)
            return options[number % len(options)]

        result = run(interpreted(module, weights.__getitem__, tuner=choose), step, draws)
        found.add(b"".join(each.tobytes() for each in (result.candidates, result.candidate_logits, result.drawn)))
    assert blocks == {32, 64, 128}
    assert len(found) == 1


def test_a_head_has_room_for_every_division() -> None:
    module, _ = decoder(layers=1)
    step = emit(planned_step(module, **LIMITS)).program
    heads = [each for kernel in step.kernels for each in kernel.launches if each.grid.kind == "head"]
    assert len(heads) == 1
    for rows in (1, 16, 17, 64):
        assert all(each.block >= 32 for each in candidates(heads[0], rows))


def test_logits_are_not_written_unless_somebody_asks() -> None:
    module, weights = decoder(layers=1)
    executable, rows = interpreted(module, weights.__getitem__), two_sequences()
    result = run(executable, rows, [DRAWS[0], None])
    place = executable.step.returned[0]
    size = len(rows.outputs) * 331
    written = executable.launcher.arena[place.place : place.place + size]
    assert written.isnan().all()
    assert np.isfinite(result.candidate_logits).all()
    assert np.isfinite(result.logits).all()
    assert not written.isnan().any()
    traced = {each.output: each.value for each in executable.trace(poisoned_state(executable), rows)}
    assert any(each.tobytes() == result.logits.tobytes() for each in traced.values())


def head_step(vocabulary: int, body, kinds=("head",), width: int = 24):
    """Embeddings, and the logits that `body(b, x, weight, bias)` computes for the rows whose outputs are wanted."""
    step = Step()
    table, matrix = step.weight("table", 200, width), step.weight("matrix", vocabulary, width)
    bias = torch.randn(vocabulary, generator=step.generator)
    bias[3:9] = -math.inf
    shift = step.weight("bias", tensor=bias)
    arguments = {name: step.argument(name) for name in ROW_TYPES}
    x = step.kernel([table, arguments["tokens"]], lambda b, t, i: b.add(ir.Gather, t, i), "row_wise")

    def head(b, x, outputs, matrix, bias):
        return body(b, b.add(ir.Gather, x, outputs), matrix, bias)

    def chosen(b, logits):
        best = b.emit(ir.TopK.make(logits, k=8, index_dtype="i32"))
        return best.results[1], best.results[0]

    inputs = [x, arguments["outputs"], matrix, shift]
    if kinds == ("head",):

        def whole(b, *given):
            logits = head(b, *given)
            return logits, *chosen(b, logits)

        return step.finish(*step.kernel(inputs, whole, "head")), step.weights
    logits = step.kernel(inputs, head, kinds[0])
    return step.finish(logits, *step.kernel([logits], chosen, kinds[1])), step.weights


def capped(b, x, matrix, bias):
    logits = b.map("div", b.add(ir.Linear, x, matrix, bias), b.constant(3.0, "f32"))
    return b.map("mul", b.map("tanh", logits), b.constant(3.0, "f32"))


def unused_ids(b, x, matrix, bias):
    return b.slice(b.add(ir.Linear, x, matrix, bias), 1, 0, 130)


def with_infinities(b, x, matrix, bias):
    return b.add(ir.Linear, x, matrix, bias)


@pytest.mark.parametrize(("body", "size"), [(capped, 149), (unused_ids, 149), (with_infinities, 12)])
def test_what_follows_a_product_is_chosen_in_its_tile(body, size: int) -> None:
    module, weights = head_step(size, body)
    executable, rows, draws = interpreted(module, weights.__getitem__), two_sequences(vocabulary=200), [DRAWS[0], None]
    (kernel,) = executable.step.kernels[-1:]
    assert [each.grid.kind for each in kernel.launches] == ["head", "choice"]
    assert [each.grid.kind for each in kernel.on_demand] == ["products"]
    assert_chosen(run(executable, rows, draws), rows, draws)


@pytest.mark.parametrize("size", [149, 2500])
def test_logits_that_another_kernel_reads_are_chosen_from_in_memory(size: int) -> None:
    module, weights = head_step(size, capped, ("linear", "topk"))
    executable, rows, draws = interpreted(module, weights.__getitem__), two_sequences(vocabulary=200), [DRAWS[1], None]
    launches = [each.grid.kind for kernel in executable.step.kernels for each in kernel.launches]
    assert launches == ["rows", "products", "chunks", "choice"]
    assert not any(kernel.on_demand for kernel in executable.step.kernels)
    assert_chosen(run(executable, rows, draws), rows, draws)


def test_logits_that_the_step_reads_as_well_are_written_in_it() -> None:
    """The product has a second reader, in the head's own kernel or after it."""

    def twice(b, x, matrix, bias):
        logits = b.add(ir.Linear, x, matrix, bias)
        best = b.emit(ir.TopK.make(logits, k=8, index_dtype="i32"))
        return logits, best.results[1], best.results[0], b.map("exp", logits)

    step = Step()
    table, matrix = step.weight("table", 200, 24), step.weight("matrix", 149, 24)
    shift = step.weight("bias", 149)
    arguments = {name: step.argument(name) for name in ROW_TYPES}
    x = step.kernel([table, arguments["tokens"]], lambda b, t, i: b.add(ir.Gather, t, i), "row_wise")

    def head(b, x, outputs, matrix, bias):
        return twice(b, b.add(ir.Gather, x, outputs), matrix, bias)

    logits, ids, values, exponentials = step.kernel([x, arguments["outputs"], matrix, shift], head, "head")
    best = step.kernel([exponentials], lambda b, e: b.reduce("max", e, [1], keep=True), "row_wise")
    module = step.finish(logits, ids, values, best)
    executable, rows = interpreted(module, step.weights.__getitem__), two_sequences(vocabulary=200)
    assert not any(kernel.on_demand for kernel in executable.step.kernels)
    run(executable, rows)
    sizes = {"N": len(rows.tokens), "M": len(rows.outputs)}
    found, chosen, _, most = (executable.launcher.value(each, sizes) for each in executable.step.returned)
    assert np.array_equal(chosen, np.argsort(-found, 1, kind="stable")[:, :8])
    np.testing.assert_allclose(most[:, 0], np.exp(found.max(1)), rtol=1e-5)
