"""Masks for all pairs of a long sequence: blocks and bounds agree with the whole; nothing far away is overlooked."""

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from forerun import ir
from forerun.errors import ForerunError, LookAheadError, UnsupportedOperationError
from forerun.passes.attention_masks import Mask, Steps, visible
from forerun.passes.base import PassContext
from forerun.passes.bounds import bound_cast, bound_map
from forerun.passes.lengths import evaluate_at
from forerun.passes.matching import HIDDEN
from forerun.passes.pairwise import Pairs, Span
from forerun.passes.pipeline import run_pipeline, step_pipeline
from forerun.passes.tabulate_positions import TabulatePositions
from tests.models import FAMILIES
from tests.passes.programs import Program, program
from tests.passes.test_attention_masks import (
    REFUSED,
    UNDERSTOOD,
    UNDERSTOOD_NAMES,
    MaskBody,
    attended,
    behind,
    biased,
    causal,
    chunked,
    compare,
    context,
    keys,
    rows,
    understood,
    window,
)

LENGTH = 300
"""More than two blocks that are evaluated, and still square at a price."""
FAR = 20_000


def raised(family: str) -> Program:
    """A family's program just before the analysis of its masks."""
    found = program(family)
    front = step_pipeline(max_rows=8, max_outputs=4, block=4, candidates=2)
    names = [each.name for each in front]
    run_pipeline(found.module, front[: names.index("tabulate-positions")], PassContext(found.weights.__getitem__))
    return found


def attentions(module: ir.ModuleOp) -> list[ir.Attention]:
    return [each for each in ir.functions(module)["forward"].body if isinstance(each, ir.Attention)]


def masks(module: ir.ModuleOp) -> list[ir.SSAValue]:
    return list(dict.fromkeys(_masks_of_attentions(module)))


def require_blocks_of_the_whole(mask: ir.SSAValue, given: PassContext) -> None:
    """Blocks are parts of the whole; bounds hold every value; ranges are those of the whole."""
    pairs, full = Pairs(mask, LENGTH, given), evaluate_at(mask, LENGTH, given)
    full = full.reshape(-1, *full.shape[-2:]).expand(-1, LENGTH, LENGTH)
    random = np.random.default_rng(0)
    for _ in range(40):
        row, key = (Span(*sorted(random.choice(LENGTH + 1, 2, replace=False).tolist())) for _ in range(2))
        part = full[:, row.part, key.part]
        assert torch.equal(pairs.values(row, key), part)
        bounds = pairs.bounds(row, key)
        if bounds is not None:
            low, high = (each.reshape(-1, 1, 1) for each in bounds)
            assert bool(((low <= part) & (part <= high)).all())
    shown = full[0] if full.dtype == torch.bool else full[0] > HIDDEN
    seen = visible(pairs)
    assert torch.equal(seen.count, shown.sum(-1))
    assert torch.equal(seen.first, shown.int().argmax(-1))
    assert torch.equal(seen.last, LENGTH - 1 - shown.flip(-1).int().argmax(-1))
    chosen = pairs.values(pairs.whole, pairs.whole, pairs.shown)
    assert torch.equal(chosen[:, shown], full[:, shown])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_masks_in_blocks(family: str) -> None:
    found = raised(family)
    for mask in masks(found.module):
        require_blocks_of_the_whole(mask, PassContext(found.weights.__getitem__, LENGTH))


@pytest.mark.parametrize("mask", [each[0] for each in UNDERSTOOD], ids=UNDERSTOOD_NAMES)
def test_understood_masks_in_blocks(mask: MaskBody) -> None:
    _, attention = attended(mask)
    assert attention.mask is not None
    require_blocks_of_the_whole(attention.mask, context(LENGTH))


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_of_a_family_are_its_masks(family: str) -> None:
    """For every pair the tables agree with the model's own mask, up to one number per row."""
    found = raised(family)
    given = PassContext(found.weights.__getitem__, LENGTH)
    wanted = [evaluate_at(mask, LENGTH, given).float() for mask in masks(found.module)]
    boolean = [ir.tensor_type(mask).dtype == "i1" for mask in masks(found.module)]
    where = [masks(found.module).index(each) for each in _masks_of_attentions(found.module)]
    TabulatePositions().apply(given, found.module)
    weights = ir.with_derived(found.module, found.weights.__getitem__)
    places = torch.arange(LENGTH)
    for attention, number in zip(attentions(found.module), where, strict=True):
        first = torch.zeros(LENGTH, dtype=torch.long)
        if attention.first is not None:
            gather = attention.first.owner
            assert isinstance(gather, ir.Gather)
            first = table(gather.table, weights)
        shown = (places >= first[:, None]) & (places <= places[:, None])
        mask = wanted[number].reshape(-1, LENGTH, LENGTH)
        assert torch.equal(shown.expand_as(mask), mask.bool() if boolean[number] else mask > HIDDEN)
        if boolean[number]:
            continue
        bias = torch.zeros(1, LENGTH) if attention.bias is None else table(attention.bias, weights)
        away = (places[:, None] - places).clamp(min=0)
        index = away if attention.bias_by != "key" else places.expand(LENGTH, -1)
        given_bias, own = bias[:, index], bias[:, index].diagonal(dim1=1, dim2=2)[..., None]
        wanted_own = mask.diagonal(dim1=1, dim2=2)[..., None]
        difference = ((given_bias - own) - (mask - wanted_own))[:, shown]
        assert float(difference.abs().max()) <= 1e-5


def _masks_of_attentions(module: ir.ModuleOp) -> list[ir.SSAValue]:
    return [each.mask for each in attentions(module) if each.mask is not None]


def table(value: ir.SSAValue, weights: Callable[[str], torch.Tensor]) -> torch.Tensor:
    assert isinstance(value.owner, ir.Parameter)
    return weights(value.owner.symbol)


def at(build: ir.Builder, value: ir.SSAValue, number: int) -> ir.SSAValue:
    return compare(build, "eq", value, number)


def a_row_looks_ahead(build: ir.Builder) -> ir.SSAValue:
    pair = build.map("and", at(build, rows(build), 15_000), at(build, keys(build), 15_001))
    return build.map("or", causal(build), pair)


def a_row_sees_further_back(build: ir.Builder) -> ir.SSAValue:
    further = build.map("and", causal(build), at(build, rows(build), 15_000))
    return build.map("or", window(build), further)


def a_pair_is_hidden(build: ir.Builder) -> ir.SSAValue:
    pair = build.map("and", at(build, rows(build), 15_000), at(build, keys(build), 7_777))
    return build.map("and", causal(build), build.map("not", pair))


def a_key_is_hidden_by_a_number(build: ir.Builder) -> ir.SSAValue:
    pair = build.map("and", at(build, rows(build), 15_000), at(build, keys(build), 7_777))
    return build.map("where", pair, build.constant(-2e4, "f32"), build.cast(build.map("not", causal(build)), "f32"))


def the_window_widens(build: ir.Builder) -> ir.SSAValue:
    wide = build.map("and", causal(build), compare(build, "lt", behind(build), 6))
    return build.map("where", compare(build, "ge", rows(build), 15_000), wide, window(build))


def a_bias_bends(build: ir.Builder) -> ir.SSAValue:
    """A bias by distance, except from a far row on."""
    bias = build.cast(build.map("neg", behind(build)), "f32")
    small = build.map("mul", bias, build.constant(0.25, "f32"))
    far = compare(build, "ge", rows(build), 15_000)
    return build.map("where", far, build.map("mul", small, build.constant(0.5, "f32")), small)


def unbounded(build: ir.Builder) -> ir.SSAValue:
    """A causal mask, by means of a function that has no bounds."""
    distance = compare(build, "remainder", behind(build), 1 << 40)
    return compare(build, "lt", distance, 1 << 39)


FOOLING: list[tuple[MaskBody, type[ForerunError], str]] = [
    (a_row_looks_ahead, LookAheadError, "lets position 15000 see position 15001"),
    (a_row_sees_further_back, UnsupportedOperationError, "moves unevenly"),
    (a_pair_is_hidden, UnsupportedOperationError, "has gaps"),
    (a_key_is_hidden_by_a_number, LookAheadError, "lets position 0 see position 1"),
    (the_window_widens, UnsupportedOperationError, "moves unevenly"),
    (biased(a_bias_bends), UnsupportedOperationError, "every pair of positions"),
    (unbounded, UnsupportedOperationError, "every pair of positions, which are too many at max_length=20000"),
]


@pytest.mark.parametrize(("mask", "error", "message"), FOOLING, ids=lambda case: getattr(case, "__name__", None))
def test_what_changes_far_away_is_found(mask: MaskBody, error: type[ForerunError], message: str) -> None:
    _, attention = attended(mask)
    with pytest.raises(error, match=message):
        understood(attention, FAR)


@pytest.mark.parametrize(("mask", "error", "message"), REFUSED, ids=lambda case: getattr(case, "__name__", None))
def test_what_is_refused_is_refused_at_length(mask: MaskBody, error: type[ForerunError], message: str) -> None:
    _, attention = attended(mask)
    with pytest.raises(error, match=message):
        understood(attention, 2000)


def test_what_has_no_bounds_is_evaluated_where_that_is_cheap() -> None:
    _, attention = attended(unbounded)
    assert understood(attention, 1000) == Mask(None, None, "causal")


LONG = [
    (causal, Mask(None, None, "causal")),
    (window, Mask(Steps(5, 1, 1, 1), None, "a sliding window of 5")),
    (chunked, Mask(Steps(8, 8, 8, 8), None, "a range of at most 8")),
]


@pytest.mark.parametrize(("mask", "expected"), LONG, ids=["causal", "window", "chunked"])
def test_a_long_context_takes_seconds(mask: MaskBody, expected: Mask) -> None:
    _, attention = attended(mask)
    start = time.perf_counter()
    assert understood(attention, 131_072) == expected
    assert time.perf_counter() - start < 60


def test_bounds_hold_whatever_is_in_a_box() -> None:
    """Every function with bounds, over boxes of numbers with infinities and zeros, and of integers near overflow."""
    random = torch.Generator().manual_seed(0)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e38, -1e38, 1.0])
    for function, count in (("add", 2), ("sub", 2), ("mul", 2), ("div", 2), ("floor_div", 2), ("max", 2), ("min", 2),
                            ("neg", 1), ("floor", 1), ("relu", 1), ("le", 2), ("lt", 2), ("ge", 2), ("gt", 2),
                            ("eq", 2), ("ne", 2)):  # fmt: skip
        for trial in range(300):
            if trial % 2:
                values = [torch.randn(6, generator=random).mul(3).round() for _ in range(count)]
                for each in values:
                    each[int(torch.randint(6, (), generator=random))] = special[trial // 2 % len(special)]
            else:
                top = 1 << (62 if trial % 4 else 6)
                values = [torch.randint(-top, top, (6,), generator=random) for _ in range(count)]
            if function in ("div", "relu", "floor") and not values[0].is_floating_point():
                continue
            if function == "floor_div" and not values[0].is_floating_point() and bool((values[1] == 0).any()):
                continue
            bounds = bound_map(function, [(each.amin(), each.amax()) for each in values])
            if bounds is None:
                continue
            grid = torch.meshgrid(*values, indexing="ij")
            exact = ir.FUNCTIONS[function][1](*grid)
            assert bool(((bounds[0] <= exact) & (exact <= bounds[1])).all()), (function, values)


def test_bounds_of_casts_to_truth_values() -> None:
    cases = [(1.0, 2.0, True, True), (-2.0, -1.0, True, True), (0.0, 0.0, False, False), (-1.0, 1.0, False, True)]
    for low, high, certain, possible in cases:
        bounds = bound_cast((torch.tensor(low), torch.tensor(high)), torch.bool)
        assert bounds is not None
        assert (bool(bounds[0]), bool(bounds[1])) == (certain, possible)
