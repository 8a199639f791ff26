"""The kind of every value along the sequence: one case per transfer rule, and what looks ahead is named."""

from collections.abc import Callable
from typing import Any

import pytest

from forerun import ir
from forerun.errors import LookAheadError
from forerun.frontends.torch_export import import_program
from forerun.frontends.tracing import TokenLogits, trace_module
from forerun.passes.base import PassContext
from forerun.passes.pipeline import run_pipeline, step_pipeline
from forerun.passes.sequence_axis import RULES, Along, Kind, analyse, require_incremental
from forerun.passes.tabulate_positions import TabulatePositions
from forerun.passes.transfer import no_fault
from tests.ir.build import function, tensor
from tests.models import encoder

LINE = ir.FileLineColLoc(ir.StringAttr("modeling.py"), ir.IntAttr(42), ir.IntAttr(0))
Body = Callable[[ir.Builder, ir.SSAValue], Any]


def constant(build: ir.Builder, *shape: int, dtype: str = "f32") -> ir.SSAValue:
    return build.full(shape, 1, dtype)


def positions(build: ir.Builder, size: str = "T") -> ir.SSAValue:
    return build.add(ir.Iota, size=size)


def place(build: ir.Builder) -> ir.SSAValue:
    """One number per position, as a column [T, 1]."""
    return build.reshape(build.cast(positions(build), "f32"), ("T", 1))


def pairs(build: ir.Builder) -> ir.SSAValue:
    return build.map("sub", place(build), build.cast(positions(build), "f32"))


def shifted(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    return build.concat([constant(build, 1, 1, 8), build.slice(x, 1, 0, "T-1")], 1)


def along(body: Body) -> Along:
    """The kind of what a body computes from tokens x [1, T, 8]."""
    module = function({"x": tensor([1, "T", 8])}, lambda build, x: body(build, x))
    ir.verify(module)
    forward = ir.functions(module)["forward"]
    return analyse(forward)[forward.returned[0]]


def recurrence(build: ir.Builder, *inputs: ir.SSAValue) -> ir.SSAValue:
    """Running sums of all features, for inputs [..., 8] at each position."""
    kinds = [ir.tensor_type(each) for each in inputs]
    shapes = [each.dims[1:] if each.dims[0] == "T" else each.dims for each in kinds]
    record = tensor([8])
    body = ir.Block(arg_types=[record, *(tensor(shape) for shape in shapes)])
    inner = ir.Builder(body)
    total = inner.map("add", *(body.args[:2]))
    inner.emit(ir.Yield.make(total, total))
    return build.emit(ir.Recurrence.of(inputs, ir.Region(body), size="T")).results[0]


def weight(build: ir.Builder) -> ir.SSAValue:
    return constant(build, 6, 8)


KINDS: list[tuple[str, Kind, int | None, Body]] = [
    ("a constant", Kind.CONSTANT, None, lambda b, x: constant(b, 3)),
    ("a map of constants", Kind.CONSTANT, None, lambda b, x: b.map("exp", constant(b, 3))),
    ("a range of fixed size", Kind.CONSTANT, None, lambda b, x: b.add(ir.Iota, size=7)),
    ("positions", Kind.POSITIONAL, -1, lambda b, x: positions(b)),
    ("a constant for every position", Kind.POSITIONAL, -2, lambda b, x: b.broadcast(constant(b, 8), ("T", 8))),
    ("the front of a table", Kind.POSITIONAL, -2, lambda b, x: b.slice(constant(b, 64, 8), 0, 0, "T")),
    ("a table at positions", Kind.POSITIONAL, -2, lambda b, x: b.add(ir.Gather, constant(b, 64, 8), positions(b))),
    ("a transposed table", Kind.POSITIONAL, -1, lambda b, x: b.transpose(place(b), (1, 0))),
    ("a fixed position", Kind.CONSTANT, None, lambda b, x: b.slice(place(b), 0, 0, 1)),
    ("positions counted on", Kind.POSITIONAL, -1, lambda b, x: b.add(ir.Scan, positions(b), dim=0)),
    ("tokens", Kind.ROW_LOCAL, -2, lambda b, x: x),
    ("tokens and positions", Kind.ROW_LOCAL, -2, lambda b, x: b.map("add", x, place(b))),
    ("tokens and constants", Kind.ROW_LOCAL, -2, lambda b, x: b.map("mul", x, constant(b, 8))),
    ("experts", Kind.ROW_LOCAL, -3, lambda b, x: b.add(ir.ExpertLinear, x, constant(b, 3, 6, 8), chosen(b, x))),
    ("a linear layer", Kind.ROW_LOCAL, -2, lambda b, x: b.add(ir.Linear, x, weight(b))),
    ("a product with a matrix", Kind.ROW_LOCAL, -2, lambda b, x: b.add(ir.MatMul, x, constant(b, 8, 6))),
    ("features reduced", Kind.ROW_LOCAL, -1, lambda b, x: b.reduce("sum", x, (2,))),
    ("a softmax over features", Kind.ROW_LOCAL, -2, lambda b, x: b.add(ir.Softmax, x, dim=2)),
    ("candidates", Kind.ROW_LOCAL, -2, lambda b, x: b.emit(ir.TopK.make(x, k=2)).results[0]),
    ("a norm", Kind.ROW_LOCAL, -2, lambda b, x: b.add(ir.RMSNorm, x, eps=1e-6)),
    ("a layer norm", Kind.ROW_LOCAL, -2, lambda b, x: b.add(ir.LayerNorm, x, eps=1e-6)),
    ("heads", Kind.ROW_LOCAL, -2, lambda b, x: b.transpose(b.reshape(x, (1, "T", 2, 4)), (0, 2, 1, 3))),
    ("features sliced", Kind.ROW_LOCAL, -2, lambda b, x: b.slice(x, 2, 2, 6)),
    ("features joined", Kind.ROW_LOCAL, -2, lambda b, x: b.concat([x, b.map("exp", x)], 2)),
    (
        "features taken",
        Kind.ROW_LOCAL,
        -2,
        lambda b, x: b.add(ir.TakeAlong, x, b.emit(ir.TopK.make(x, k=2)).results[1], dim=2),
    ),
    (
        "an embedding",
        Kind.ROW_LOCAL,
        -2,
        lambda b, x: b.add(ir.Gather, constant(b, 64, 5), b.cast(b.reduce("sum", x, (2,)), "i64")),
    ),
    ("tokens shifted back", Kind.CAUSAL, -2, shifted),
    ("tokens but the last", Kind.CAUSAL, -2, lambda b, x: b.slice(x, 1, 0, "T-1")),
    ("running sums", Kind.CAUSAL, -2, lambda b, x: b.add(ir.Scan, x, dim=1)),
    ("recurrence", Kind.CAUSAL, -2, lambda b, x: recurrence(b, b.reshape(x, ("T", 8)))),
    ("windows", Kind.CAUSAL, -3, lambda b, x: b.add(ir.Window, b.reshape(x, ("T", 8)), count=3)),
    ("attention", Kind.CAUSAL, -2, lambda b, x: b.add(ir.Attention, x, x, x, scale=1.0, causal=True)),
    ("a map of attention", Kind.CAUSAL, -2, lambda b, x: b.map("exp", b.add(ir.Scan, x, dim=1))),
    ("pairs of positions", Kind.PAIRWISE, None, lambda b, x: pairs(b)),
    ("a constant for every pair", Kind.PAIRWISE, None, lambda b, x: b.full(("T", "T"), 1.0, "f32")),
    ("a map of pairs", Kind.PAIRWISE, None, lambda b, x: b.map("lt", pairs(b), b.constant(3.0, "f32"))),
    (
        "a bias looked up for every pair",
        Kind.PAIRWISE,
        None,
        lambda b, x: b.add(ir.Gather, constant(b, 64), b.cast(pairs(b), "i64")),
    ),
]


@pytest.mark.parametrize(("kind", "axis", "body"), [case[1:] for case in KINDS], ids=[case[0] for case in KINDS])
def test_kinds(kind: Kind, axis: int | None, body: Body) -> None:
    found = along(body)
    assert (found.kind, found.axis) == (kind, axis), found.reason


AHEAD: list[tuple[str, type[ir.SpecOperation], str, Body]] = [
    ("a mean over tokens", ir.Reduce, "reduces over the whole", lambda b, x: b.reduce("mean", x, (1,), keep=True)),
    ("a mean over positions", ir.Reduce, "reduces over the whole", lambda b, x: b.reduce("mean", place(b), (0,))),
    ("a softmax over tokens", ir.Softmax, "takes a softmax over the whole", lambda b, x: b.add(ir.Softmax, x, dim=1)),
    (
        "a softmax over pairs",
        ir.Softmax,
        "takes a softmax over the whole",
        lambda b, x: b.add(ir.Softmax, pairs(b), dim=1),
    ),
    ("the largest tokens", ir.TopK, "takes the largest values of the whole", lambda b, x: top_tokens(b, x)),
    ("tokens backwards", ir.Gather, "picks tokens by index", lambda b, x: backwards(b, x)),
    ("tokens by position", ir.TakeAlong, "picks tokens by index", lambda b, x: taken(b, x)),
    ("positions by token", ir.Gather, "picks positions by token", lambda b, x: position_by_token(b, x)),
    ("windows of features", ir.Window, "reads earlier values along", lambda b, x: b.add(ir.Window, x, count=3)),
    ("the last token", ir.Slice, "takes the end of the sequence", lambda b, x: b.slice(x, 1, "T-1", "T")),
    ("the last position", ir.Slice, "takes the end of the sequence", lambda b, x: b.slice(place(b), 0, "T-1", "T")),
    ("a table at the length", ir.Slice, "takes the end of the sequence", lambda b, x: at_the_length(b, x)),
    ("the first token", ir.Slice, "takes a fixed part", lambda b, x: b.slice(x, 1, 0, 1)),
    ("the next token", ir.Slice, "shifts the sequence towards its end", lambda b, x: b.slice(x, 1, 1, "T")),
    (
        "padding behind",
        ir.Concat,
        "appends values to the sequence",
        lambda b, x: b.concat([x, constant(b, 1, 1, 8)], 1),
    ),
    ("tokens twice", ir.Concat, "merges the sequence with another dimension", lambda b, x: b.concat([x, x], 1)),
    ("tokens folded", ir.Reshape, "merges the sequence", lambda b, x: b.reshape(x, (1, 2, "T", 4))),
    ("a product over tokens", ir.MatMul, "mixes positions in a product", lambda b, x: mixed(b, x)),
    ("scores outside attention", ir.MatMul, "relates tokens to tokens", lambda b, x: scores(b, x)),
    ("a layer over positions", ir.Linear, "mixes positions with a weight", lambda b, x: mixer(b, x)),
    ("tokens against tokens", ir.Map, "combines tokens of different positions", lambda b, x: crossed(b, x)),
    ("tokens rotated by tokens", ir.Rotary, "combines tokens of different positions", lambda b, x: rotated(b, x)),
    ("experts of positions", ir.ExpertLinear, "mixes positions with a weight", lambda b, x: expert_mixer(b, x)),
    ("tokens as experts", ir.ExpertLinear, "takes weights that depend on the", lambda b, x: token_experts(b, x)),
    ("a weight of tokens", ir.Linear, "takes a weight that depends", lambda b, x: token_weight(b, x)),
    (
        "a recurrence over all of the tokens",
        ir.Recurrence,
        "reads a part of the sequence at each position",
        lambda b, x: recurrence(b, b.reshape(x, ("T", 8)), b.transpose(b.reshape(x, ("T", 8)), (1, 0))),
    ),
    (
        "an encoder's attention",
        ir.Attention,
        "attends to later positions",
        lambda b, x: b.add(ir.Attention, x, x, x, scale=1.0),
    ),
    (
        "attention over features",
        ir.Attention,
        "along a dimension other than the sequence",
        lambda b, x: over_features(b, x),
    ),
    (
        "attention over more keys",
        ir.Attention,
        "along a dimension other than the sequence",
        lambda b, x: over_more(b, x),
    ),
    ("a norm over the sequence", ir.LayerNorm, "normalises over the whole", lambda b, x: sequence_norm(b, x)),
]


def top_tokens(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    return build.emit(ir.TopK.make(build.transpose(x, (0, 2, 1)), k=2)).results[0]


def backwards(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    index = build.map("sub", build.constant(9, "i64"), positions(build))
    return build.add(ir.Gather, build.reshape(x, ("T", 8)), index)


def taken(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    index = build.broadcast(build.reshape(positions(build), (1, "T", 1)), (1, "T", 8))
    return build.add(ir.TakeAlong, x, index, dim=1)


def position_by_token(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    return build.add(ir.Gather, place(build), build.cast(build.reduce("sum", x, (2,)), "i64"))


def at_the_length(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    return build.slice(constant(build, 64, 8), 0, "T-1", "T")


def mixed(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    return build.add(ir.MatMul, build.reshape(pairs(build), (1, "T", "T")), x)


def scores(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    return build.add(ir.MatMul, x, build.transpose(x, (0, 2, 1)))


def mixer(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    table = build.broadcast(constant(build, 1, 1), (6, "T"))
    return build.add(ir.Linear, build.transpose(x, (0, 2, 1)), table)


def crossed(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    number = build.reduce("sum", x, (2,))
    return build.map("add", number, build.reshape(number, ("T", 1)))


def rotated(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    table = build.reshape(x, ("T", 1, 8))
    return build.add(ir.Rotary, x, table, table)


def token_weight(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    return build.add(ir.Linear, constant(build, 3, 8), build.reshape(x, ("T", 8)))


def chosen(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    """Two experts of each token, by its largest features."""
    return build.emit(ir.TopK.make(x, k=2)).results[1]


def expert_mixer(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    table = build.broadcast(constant(build, 1, 1, 1), (3, 6, "T"))
    return build.add(ir.ExpertLinear, build.transpose(x, (0, 2, 1)), table, constant(build, 1, 8, 2, dtype="i64"))


def token_experts(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    experts = build.reshape(x, ("T", 1, 8))
    return build.add(ir.ExpertLinear, constant(build, 3, 8), experts, constant(build, 3, 2, dtype="i64"))


def over_features(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    turned = build.reshape(build.transpose(x, (0, 2, 1)), (1, 8, "T"))
    return build.add(ir.Attention, turned, turned, turned, scale=1.0, causal=True)


def over_more(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    keys = build.concat([constant(build, 1, 1, 8), x], 1)
    return build.add(ir.Attention, x, keys, keys, scale=1.0, causal=True)


def sequence_norm(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    return build.add(ir.LayerNorm, build.transpose(x, (0, 2, 1)), eps=1e-6)


@pytest.mark.parametrize(("kind", "reason", "body"), [case[1:] for case in AHEAD], ids=[case[0] for case in AHEAD])
def test_what_looks_ahead_is_named_with_its_line(kind: type[ir.SpecOperation], reason: str, body: Body) -> None:
    def located(build: ir.Builder, x: ir.SSAValue) -> Any:
        value = body(build, x)
        assert isinstance(value.owner, kind)
        value.owner.location = LINE
        return build.map("exp", value)  # what is computed from it is not to blame

    module = function({"x": tensor([1, "T", 8])}, located)
    with pytest.raises(LookAheadError) as error:
        require_incremental(ir.functions(module)["forward"])
    message = str(error.value)
    assert message.startswith("The model cannot be decoded position by position: ")
    assert f"{kind.name.removeprefix('spec.')} at modeling.py:42 " in message
    assert reason in message
    assert "  > " in message


def test_every_rule_has_a_case() -> None:
    """Every rule that can refuse has a case that does; RMS norms share theirs with layer norms."""
    able = {kind for kind, rule in RULES.items() if rule.fault is not no_fault}
    assert able - {kind for _, kind, _, _ in AHEAD} == {ir.RMSNorm}


def test_what_looks_ahead_may_be_computed_in_vain() -> None:
    module = function(
        {"x": tensor([1, "T", 8])}, lambda build, x: (build.reduce("sum", x, (1,)), build.map("exp", x))[1]
    )
    require_incremental(ir.functions(module)["forward"])


def test_a_table_that_the_length_aligns_is_rejected_where_it_is_tabulated() -> None:
    """table[64 - T : 64]: one row per position, but which one depends on the length."""

    def body(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
        table = build.reshape(build.cast(build.add(ir.Iota, size=64), "f32"), (64, 1))
        return build.map("add", x, build.slice(table, 0, "-1*T+64", 64))

    module = function({"x": tensor([1, "T", 8])}, body)
    with pytest.raises(LookAheadError, match="depends on the length of the sequence"):
        TabulatePositions(max_length=32).apply(PassContext(), module)


def test_an_encoder_is_named_as_what_looks_ahead() -> None:
    module = import_program(trace_module(TokenLogits(encoder()), "BERT", 32))
    passes = step_pipeline(max_rows=8, max_outputs=4, block=4, candidates=2)
    with pytest.raises(LookAheadError, match=r"attention at \w+\.py:\d+ (attends to later|lets position 0 see)"):
        run_pipeline(module, passes, PassContext(max_length=32))
