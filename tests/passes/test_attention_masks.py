"""Masks, understood by evaluating them: ranges that end at the row, biases by key or by distance, and nothing else."""

from collections.abc import Callable

import pytest
import torch

from forerun import ir
from forerun.errors import ForerunError, LookAheadError, UnsupportedOperationError
from forerun.passes.attention_masks import Mask, Steps, classify
from forerun.passes.base import PassContext
from forerun.passes.pairwise import Pairs
from forerun.passes.tabulate_positions import TabulatePositions
from tests.ir.build import function, tensor

LENGTH = 24
HEADS = 2
MaskBody = Callable[[ir.Builder], ir.SSAValue]


def keys(build: ir.Builder) -> ir.SSAValue:
    return build.add(ir.Iota, size="T")


def rows(build: ir.Builder) -> ir.SSAValue:
    return build.reshape(keys(build), ("T", 1))


def behind(build: ir.Builder) -> ir.SSAValue:
    """How far each key lies behind the row; negative if it lies ahead."""
    return build.map("sub", rows(build), keys(build))


def compare(build: ir.Builder, function: str, value: ir.SSAValue, number: int) -> ir.SSAValue:
    return build.map(function, value, build.constant(number, "i64"))


def causal(build: ir.Builder) -> ir.SSAValue:
    return compare(build, "ge", behind(build), 0)


def window(build: ir.Builder) -> ir.SSAValue:
    return build.map("and", causal(build), compare(build, "lt", behind(build), 5))


def chunked(build: ir.Builder) -> ir.SSAValue:
    """Rows see their own chunk of eight positions."""
    chunk = [compare(build, "floor_div", each, 8) for each in (rows(build), keys(build))]
    return build.map("and", causal(build), build.map("eq", *chunk))


def prefix(build: ir.Builder) -> ir.SSAValue:
    return build.map("or", causal(build), compare(build, "lt", keys(build), 4))


def everything(build: ir.Builder) -> ir.SSAValue:
    return build.full(("T", "T"), True, "i1")


def gaps(build: ir.Builder) -> ir.SSAValue:
    even = compare(build, "eq", compare(build, "remainder", behind(build), 2), 0)
    return build.map("and", causal(build), even)


def hole(build: ir.Builder) -> ir.SSAValue:
    """The first positions and the nearest ones (attention sinks with a window)."""
    return build.map("and", causal(build), build.map("or", window(build), compare(build, "lt", keys(build), 2)))


def of_the_length(build: ir.Builder) -> ir.SSAValue:
    """Rows see the last four positions of the whole sequence that are before them."""
    counted = build.reduce("max", build.broadcast(keys(build), ("T", "T")), (1,), keep=True)
    near = compare(build, "lt", build.map("sub", counted, keys(build)), 20)
    return build.map("and", causal(build), near)


def by_head(build: ir.Builder) -> ir.SSAValue:
    limit = compare(
        build, "mul", compare(build, "add", build.reshape(build.add(ir.Iota, size=HEADS), (HEADS, 1, 1)), 1), 3
    )
    return build.map("and", causal(build), build.map("lt", behind(build), limit))


def biased(bias: Callable[[ir.Builder], ir.SSAValue], hidden: float = float("-inf")) -> MaskBody:
    def body(build: ir.Builder) -> ir.SSAValue:
        return build.map("where", causal(build), bias(build), build.constant(hidden, "f32"))

    return body


def slopes(build: ir.Builder) -> ir.SSAValue:
    head = build.cast(build.reshape(build.add(ir.Iota, size=HEADS), (HEADS, 1, 1)), "f32")
    return build.map("mul", build.map("add", head, build.constant(1.0, "f32")), build.constant(-0.125, "f32"))


def alibi(build: ir.Builder) -> ir.SSAValue:
    return build.map("mul", slopes(build), build.cast(behind(build), "f32"))


def alibi_from_the_front(build: ir.Builder) -> ir.SSAValue:
    """BLOOM's bias: slope * key position. Relative to the row's own key it is a bias by distance."""
    return build.map("neg", build.map("mul", slopes(build), build.cast(keys(build), "f32")))


def by_key(build: ir.Builder) -> ir.SSAValue:
    return build.map("sin", build.cast(build.broadcast(keys(build), ("T", "T")), "f32"))


def buckets(build: ir.Builder) -> ir.SSAValue:
    """T5's bias: a learned number for every bucket of distances, and the last one for all greater distances."""
    table = build.add(ir.Parameter, symbol=ir.Symbol("buckets"), shape=(6, HEADS), dtype="f32")
    bucket = build.map("max", compare(build, "min", behind(build), 5), build.constant(0, "i64"))
    return build.transpose(build.add(ir.Gather, table, bucket), (2, 0, 1))


def crossed(build: ir.Builder) -> ir.SSAValue:
    return build.map("sin", build.cast(build.map("mul", rows(build), keys(build)), "f32"))


WEIGHTS = {"buckets": torch.randn(6, HEADS, generator=torch.Generator().manual_seed(0))}


def attended(mask: MaskBody) -> tuple[ir.ModuleOp, ir.Attention]:
    def body(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
        return build.add(ir.Attention, x, x, x, mask=mask(build), scale=0.5)

    module = function({"x": tensor([HEADS, "T", 8])}, body)
    module.body.block.insert_op_before(
        ir.Weight.make(symbol=ir.Symbol("buckets"), shape=(6, HEADS), dtype="f32"), ir.functions(module)["forward"]
    )
    ir.verify(module)
    (attention,) = [each for each in ir.functions(module)["forward"].body if isinstance(each, ir.Attention)]
    return module, attention


def context(length: int = LENGTH) -> PassContext:
    return PassContext(WEIGHTS.__getitem__, length)


def understood(attention: ir.Attention, length: int = LENGTH) -> Mask:
    mask, given = attention.mask, context(length)
    assert mask is not None
    return classify(mask, attention, Pairs(mask, length, given), given)


UNDERSTOOD = [
    (causal, Mask(None, None, "causal")),
    (window, Mask(Steps(5, 1, 1, 1), None, "a sliding window of 5")),
    (chunked, Mask(Steps(8, 8, 8, 8), None, "a range of at most 8")),
    (biased(lambda build: build.full(("T", "T"), 0.0, "f32")), Mask(None, None, "causal")),
    (biased(lambda build: build.full(("T", "T"), 0.0, "f32"), -1e9), Mask(None, None, "causal")),
    (biased(alibi), Mask(None, "distance", "causal with a bias by distance")),
    (biased(alibi_from_the_front), Mask(None, "distance", "causal with a bias by distance")),
    (biased(by_key), Mask(None, "key", "causal with a bias by key")),
    (biased(buckets), Mask(None, "distance", "causal with a bias by distance")),
]
UNDERSTOOD_NAMES = ["causal", "window", "chunked", "zeros", "low", "alibi", "alibi_from_the_front", "by_key", "buckets"]

REFUSED: list[tuple[MaskBody, type[ForerunError], str]] = [
    (prefix, LookAheadError, "lets position 0 see position 1"),
    (everything, LookAheadError, "lets position 0 see position 1"),
    (gaps, UnsupportedOperationError, "has gaps"),
    (hole, UnsupportedOperationError, "has gaps"),
    (by_head, UnsupportedOperationError, "differs between heads"),
    (of_the_length, LookAheadError, "changes with the length"),
    (biased(crossed), UnsupportedOperationError, "neither the distance nor the key's position"),
]


@pytest.mark.parametrize(("mask", "expected"), UNDERSTOOD, ids=UNDERSTOOD_NAMES)
def test_understood_masks(mask: MaskBody, expected: Mask) -> None:
    _, attention = attended(mask)
    assert understood(attention) == expected


@pytest.mark.parametrize(("mask", "error", "message"), REFUSED, ids=lambda case: getattr(case, "__name__", None))
def test_refused_masks(mask: MaskBody, error: type[ForerunError], message: str) -> None:
    _, attention = attended(mask)
    with pytest.raises(error, match=message):
        understood(attention)


@pytest.mark.parametrize("mask", [case[0] for case in UNDERSTOOD], ids=UNDERSTOOD_NAMES)
@pytest.mark.parametrize("length", [1, 9, LENGTH])
def test_an_understood_mask_keeps_the_attention(mask: MaskBody, length: int) -> None:
    module, _ = attended(mask)
    x = torch.randn(HEADS, length, 8, generator=torch.Generator().manual_seed(1))
    (before,) = ir.evaluate(module, "forward", [x], ir.Environment(WEIGHTS.__getitem__))
    TabulatePositions().apply(context(), module)
    ir.verify(module)
    (attention,) = [each for each in ir.functions(module)["forward"].body if isinstance(each, ir.Attention)]
    assert attention.mask is None
    environment = ir.Environment(ir.with_derived(module, WEIGHTS.__getitem__))
    (after,) = ir.evaluate(module, "forward", [x], environment)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_a_mask_of_tokens_is_refused() -> None:
    def body(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
        seen = build.map("gt", build.reduce("sum", x, (2,)), build.constant(0.0, "f32"))
        mask = build.map("and", causal(build), build.reshape(seen, (1, 1, "T")))
        return build.add(ir.Attention, x, x, x, mask=mask, scale=0.5)

    module = function({"x": tensor([1, "T", 8])}, body)
    with pytest.raises(LookAheadError, match="relates tokens to tokens outside an attention"):
        TabulatePositions(max_length=LENGTH).apply(PassContext(), module)
