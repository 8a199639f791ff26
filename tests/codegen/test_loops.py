"""The loop layer: index arithmetic against integers, formulas against torch, nests as text, programs as JSON."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from steps import decoder

from forerun import ir
from forerun.codegen.loops.decompose import FORMULAS
from forerun.codegen.loops.expr import Apply, Const, Expr, Partial, apply, count, integer, number, where
from forerun.codegen.loops.index import (
    Combined,
    Computed,
    Index,
    Lane,
    NamedSize,
    flat,
    reshaped,
    unflat,
)
from forerun.codegen.loops.nest import ProductNest, RecurrenceNest, RowNest, depends_across, invariants
from forerun.codegen.planned import PlannedStep
from forerun.codegen.program import Program
from forerun.codegen.triton.lowering import emit as emit_triton
from forerun.codegen.tvm.lowering import Lowering as TvmLowering
from forerun.codegen.tvm.lowering import emit as emit_tvm
from tests.compiled import planned_step
from tests.state_models import MODELS, planned

LIMITS = {"max_rows": 16, "max_outputs": 16, "max_path": 16, "max_length": 64}


def value_of(index: Index, at: dict[str, int]) -> int:
    """Evaluates an index with integer arithmetic."""
    total = index.constant
    for lane, factor in index.terms:
        match lane.made:
            case Combined("quotient", inner, divisor):
                each = value_of(inner, at) // value_of(divisor, at)
            case Combined("remainder", inner, divisor):
                each = value_of(inner, at) % value_of(divisor, at)
            case Combined("product", inner, size):
                each = value_of(inner, at) * value_of(size, at)
            case Computed():
                raise AssertionError("nothing is computed here")
            case NamedSize() | None:
                each = at[lane.name]
        total += factor * each
    return total


shapes = some.lists(some.integers(1, 6), min_size=1, max_size=4)


@given(shapes, some.data())
@settings(max_examples=200, deadline=None)
def test_a_place_and_its_index_are_each_others_inverse(dims: list[int], data: some.DataObject) -> None:
    at = [data.draw(some.integers(0, dim - 1)) for dim in dims]
    lanes = [Lane(f"i{axis}", dim) for axis, dim in enumerate(dims)]
    known = {lane.name: value for lane, value in zip(lanes, at, strict=True)}
    place = flat(dims, [Index.of(lane) if dim > 1 else Index() for lane, dim in zip(lanes, dims, strict=True)])
    assert value_of(place, known) == int(np.ravel_multi_index(at, dims))
    whole = Lane("place", math.prod(dims))
    found = [value_of(each, {"place": value_of(place, known)}) for each in unflat(dims, Index.of(whole))]
    assert found == at


@given(shapes, some.integers(0, 10_000), some.randoms())
@settings(max_examples=200, deadline=None)
def test_a_reshape_of_an_index_keeps_its_place(dims: list[int], start: int, random: object) -> None:
    volume = math.prod(dims)
    others = [volume] if volume < 4 else [2, volume // 2] if volume % 2 == 0 else [volume]
    place = start % volume
    lanes = [Lane(f"j{axis}", dim) for axis, dim in enumerate(others)]
    known = {lane.name: int(at) for lane, at in zip(lanes, np.unravel_index(place, others), strict=True)}
    index = reshaped(dims, others, [Index.of(lane) for lane in lanes])
    assert [value_of(each, known) for each in index] == [int(each) for each in np.unravel_index(place, dims)]


@given(some.integers(1, 9), some.integers(1, 9), some.integers(1, 64), some.integers(0, 200), some.data())
@settings(max_examples=300, deadline=None)
def test_divisions_are_those_of_integers(a: int, b: int, divisor: int, constant: int, data: some.DataObject) -> None:
    x, y = Lane("x", a), Lane("y", b)
    factors = data.draw(some.tuples(some.integers(0, 40), some.integers(0, 40)))
    index = Index.of(x).times(factors[0]).plus(Index.of(y).times(factors[1])).plus(constant)
    known = {"x": data.draw(some.integers(0, a - 1)), "y": data.draw(some.integers(0, b - 1))}
    quotient, remainder = index.divided(divisor)
    total = value_of(index, known)
    assert (value_of(quotient, known), value_of(remainder, known)) == divmod(total, divisor)
    whole = quotient.times(divisor).plus(remainder)
    assert value_of(whole, known) == total
    moved = remainder.substitute({x: Index.of(Lane("z", a))}.get)
    assert value_of(moved, known | {"z": known["x"]}) == total % divisor


def test_what_simplifies_needs_no_division() -> None:
    head, within = Lane("head", 6), Lane("within", 8)
    column = Index.of(head).times(16).plus(Index.of(within)).plus(8)
    assert column.divided(16) == (Index.of(head), Index.of(within).plus(8))
    chunk, lane = Lane("chunk", 36), Lane("lane", 16)
    place = Index.of(chunk).times(16).plus(Index.of(lane)).plus(32)
    _, within_head = place.divided(64)
    remainders = [each.made for each in within_head.lanes if getattr(each.made, "function", "") == "remainder"]
    assert all(each.index.variables == {chunk} for each in remainders)
    x = Index.of(Lane("x", 100))
    quotient, remainder = x.divided(7)
    assert quotient.times(7).plus(remainder) == x


def test_equal_expressions_are_one_object() -> None:
    x = Partial(Lane("x"), "number")
    assert x + 1.0 is x + 1.0
    assert number(0.0) is not number(-0.0)
    assert number(1.0) is not integer(1)
    assert apply("exp", x * 2.0) is apply("exp", x * 2.0)


def test_a_choice_that_is_known_when_compiling_is_made() -> None:
    lane = Lane("i", 64)
    x, y = Partial(Lane("x"), "number"), Partial(Lane("y"), "number")
    chosen = where(count(Index.of(lane)) < 32, x, y)
    assert isinstance(chosen, Apply)
    assert chosen.substitute({lane: Index.of(Lane("j", 16))}.get) is x
    assert chosen.substitute({lane: Index.of(Lane("j", 16)).plus(40)}.get) is y


def evaluated(expr: Expr, known: dict[Expr, torch.Tensor]) -> torch.Tensor:
    """Evaluates a formula in float32, operation by operation."""
    if expr in known:
        return known[expr]
    if isinstance(expr, Const):
        return torch.tensor(expr.value, dtype=torch.float32)
    assert isinstance(expr, Apply)
    if expr.function in FORMULAS and expr.function != "within":
        return evaluated(FORMULAS[expr.function](*expr.args), known)
    args = [evaluated(each, known) for each in expr.args]
    functions = {
        "fma": lambda a, b, c: (a.double() * b.double() + c.double()).float(),
        "max": torch.maximum, "min": torch.minimum, "where": torch.where, "power_of_two": torch.exp2,
        "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "abs": torch.abs, "log": torch.log,
        "lt": torch.lt, "gt": torch.gt, "eq": torch.eq, "ne": torch.ne,
    }  # fmt: skip
    return functions[expr.function](*args)


@pytest.mark.parametrize("name", sorted(set(FORMULAS) - {"within"}))
def test_formulas_are_close_to_exact(name: str) -> None:
    x = torch.cat((torch.linspace(-30, 30, 4001), torch.logspace(-8, 0, 400), -torch.logspace(-8, 0, 400)))
    x = x[x > -0.999] if name == "log1p" else x
    variable = Partial(Lane("x"), "number")
    found = evaluated(FORMULAS[name](variable), {variable: x})
    exact = ir.FUNCTIONS[name][1](x.double())
    least = 1e-2 if name in ("gelu", "gelu_tanh") else 1e-6  # far below 0 they are small differences
    assert float(((found.double() - exact).abs() / exact.abs().clamp(min=least)).max()) < 3e-5


def test_nests_hold_what_is_computed() -> None:
    module, _ = decoder()
    made = TvmLowering(planned_step(module, **LIMITS)).emitter.functions
    norms = [each.nest for each in made.values() if isinstance(each.nest, RowNest)]
    store = next(store for nest in norms for store in nest.stores if invariants(store.value, [store.axes[-1].lane]))
    (factor,) = invariants(store.value, [store.axes[-1].lane])
    assert factor.lanes == {store.axes[0].lane}
    assert depends_across(store.value, [store.axes[-1].lane]) is None
    assert depends_across(store.value, [store.axes[0].lane]) is not None
    products = [each.nest for each in made.values() if isinstance(each.nest, ProductNest)]
    assert {len(nest.segments) for nest in products} == {1, 3}


@pytest.mark.parametrize("emit", [emit_tvm, emit_triton])
def test_a_program_is_written_down_and_read_back(emit: Callable[[PlannedStep], Any]) -> None:
    module, _ = decoder()
    program: Program = emit(planned_step(module, **LIMITS)).program
    assert Program.read(program.text()) == program
    with pytest.raises((KeyError, TypeError, ValueError)):
        Program.read(program.text().replace('"arena"', '"area"'))


@pytest.mark.parametrize(("name", "parallel"), [("sums", True), ("turned", False)])
def test_a_recurrence_is_parallel_over_what_its_rule_does_not_mix(name: str, parallel: bool) -> None:
    made = TvmLowering(planned_step(planned(MODELS[name][0]), **LIMITS)).emitter.functions.values()
    (nest,) = [each.nest for each in made if isinstance(each.nest, RecurrenceNest)]
    assert [{axis.dim for axis in axes} for axes in nest.free] == ([{32}] if parallel else [])


def test_nests_are_readable() -> None:
    module, _ = decoder()
    nests = {name: each.nest for name, each in emit_triton(planned_step(module, **LIMITS)).program.sources.items()}
    products = nests["linear_1_products"].splitlines()
    assert products[0] == "products: row < N, feature < 96"
    assert products[1].strip() == "x = (row_wise_0[row, feature] * layer0.norm[feature])"
    assert any("the norm of row_wise_0[row, feature] (epsilon 1e-05) scales the products" in line for line in products)
    assert any(line.strip().startswith("column < 96, in pairs of heads of 16") for line in products)
    assert any(
        "layer0.cache.keys[(slots[row] // 16), (column // 16), (slots[row] % 16), (column % 16)] = fma(" in line
        for line in products
    )
    assert nests["attention_2_attention"].startswith(
        "tree attention: row < N, 6 heads over 2, keys of 16, values of 16"
    )
