"""The algebra of dimensions against the integers that it represents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun import dims as dimensions
from forerun.dims import Affine, Dim
from forerun.ir import TensorType, parse_ir, print_ir
from forerun.ir.structure import Function, Return, functions

small = st.integers(-9, 9)
dims = st.builds(lambda scale, offset: Affine(scale, "T", offset).dim(), small, small)
sizes = st.integers(0, 50)


def value(dim: Dim, size: int) -> int:
    return dimensions.evaluate(dim, {"T": size})


def can_be_size(dim: Dim) -> bool:
    """Whether the dimension is above 0 for some sizes."""
    scale, _, offset = dimensions.affine(dim)
    return scale > 0 or offset > 0


@given(dims, dims, sizes)
def test_add_is_addition(left: Dim, right: Dim, size: int) -> None:
    assert value(dimensions.add(left, right), size) == value(left, size) + value(right, size)


@given(dims, small, sizes)
def test_multiply_is_multiplication(dim: Dim, factor: int, size: int) -> None:
    assert value(dimensions.multiply(dim, factor), size) == value(dim, size) * factor


@given(dims, dims, sizes)
def test_substitute_is_evaluation_at_the_substituted_value(dim: Dim, inner: Dim, size: int) -> None:
    assert value(dimensions.substitute(dim, "T", inner), size) == value(dim, value(inner, size))


@given(dims, small)
def test_substitute_leaves_other_names(dim: Dim, number: int) -> None:
    assert dimensions.substitute(dim, "N", number) == dim


@given(dims)
def test_text_gives_the_parts_back(dim: Dim) -> None:
    assert dimensions.affine(dim).dim() == dim


@given(dims, dims)
def test_equal_dimensions_are_equal_texts(left: Dim, right: Dim) -> None:
    same = all(value(left, size) == value(right, size) for size in (0, 1))
    assert (left == right) == same


@given(st.lists(dims.filter(lambda dim: dim >= 0 if isinstance(dim, int) else can_be_size(dim)), max_size=3))
def test_types_come_back_from_text(shape: list[Dim]) -> None:
    function = Function.of("f", [("x", TensorType.of(shape, "f32"))])
    function.block.add_op(Return.make(function.block.args[0]))
    for generic in (False, True):
        again = functions(parse_ir(print_ir(function, generic)))["f"]
        assert again.block.args[0].type == TensorType.of(shape, "f32")


@given(st.integers(1, 5), small, sizes)
def test_bind_finds_the_size(scale: int, offset: int, size: int) -> None:
    bindings: dict[str, int] = {}
    dim = Affine(scale, "T", offset).dim()
    dimensions.bind([dim], [value(dim, size)], bindings)
    assert bindings == {"T": size}


def test_bind_rejects_contradictions() -> None:
    with pytest.raises(ValueError, match="size 4 where T = 3 is expected"):
        dimensions.bind(["T", "T"], [3, 4], {})
    with pytest.raises(ValueError, match="size 5 where 4 is expected"):
        dimensions.bind([4], [5], {})
    with pytest.raises(ValueError, match=r"size 5 where 2\*T = 4"):
        dimensions.bind(["2*T"], [5], {})


def test_names_do_not_add() -> None:
    with pytest.raises(ValueError, match="cannot add dimensions T and N"):
        dimensions.add("T", "N")


@pytest.mark.parametrize("text", ["", "2T", "T*2", "T+", "T+N", "-T", "T 1", "2*"])
def test_other_texts_are_no_dimensions(text: str) -> None:
    with pytest.raises(ValueError, match="is not a dimension"):
        dimensions.affine(text)


def test_a_name_without_value_is_named() -> None:
    with pytest.raises(ValueError, match="dimension T-1 has no value"):
        dimensions.evaluate("T-1", {"N": 3})


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ([2, 3], (6, ())),
        ([2, "T"], (2, ("T",))),
        (["2*T", 3], (6, ("T",))),
        (["T", "N"], (1, ("N", "T"))),
        (["T-1", 2], (2, ("T-1",))),
        ([], (1, ())),
    ],
)
def test_volume(shape: list[Dim], expected: tuple[int, tuple[str, ...]]) -> None:
    assert dimensions.volume(shape) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (["N", 576], ["N", 9, 64], [(["N"], ["N"]), ([576], [9, 64])]),
        (["N", 3, 4, 64], ["N", 12, 64], [(["N"], ["N"]), ([3, 4], [12]), ([64], [64])]),
        ([1, "N", 8], ["N", 8], [([1, "N"], ["N"]), ([8], [8])]),
        (["N", 8], ["N", 8, 1], [(["N"], ["N"]), ([8], [8]), ([], [1])]),
        (["N", 4], ["2*N", 2], [(["N", 4], ["2*N", 2])]),
        ([], [1], [([], [1])]),
    ],
)
def test_groups_of_a_reshape(before: list[Dim], after: list[Dim], expected: list[tuple[list[Dim], list[Dim]]]) -> None:
    assert [(before[left], after[right]) for left, right in dimensions.groups(before, after)] == expected
