"""What xDSL reads of other dialects' text: names, attributes as Python values, and where an operation comes from."""

import math
import re
from typing import Any

import pytest
import torch

from forerun import ir

SHOWN = '"builtin.module"() ({{\n  "a.b"() <{{value = {0}}}> : () -> () {1}\n}}) : () -> ()\n'


def read(value: str, location: str = "", after: str = "") -> ir.Operation:
    (operation,) = ir.parse_foreign(SHOWN.format(value, location) + after, "text").body.block.ops
    return operation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7 : i64", 7),
        ("true", True),
        ("1 : i1", True),
        ("-2.5 : f64", -2.5),
        ('"cpu"', "cpu"),
        ("0x7FF0000000000000 : f64", math.inf),
    ],
)
def test_plain_attributes(text: str, expected: Any) -> None:
    found = ir.foreign_attributes(read(text))["value"]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dense<true> : tensor<i1>", torch.tensor(True)),
        ("dense<[true, false]> : tensor<2xi1>", torch.tensor([True, False])),
        ("dense<[[1, -2], [3, 4]]> : tensor<2x2xsi64>", torch.tensor([[1, -2], [3, 4]])),
        ("dense<200> : tensor<2xui8>", torch.tensor([200, 200], dtype=torch.uint8)),
        ("dense<> : tensor<0x2xf32>", torch.empty(0, 2)),
        ("dense<1.5> : tensor<2xbf16>", torch.tensor([1.5, 1.5], dtype=torch.bfloat16)),
        ("dense<0xFF800000> : tensor<f32>", torch.tensor(-math.inf)),
        ("dense<0x7FF0000000000000> : tensor<2xf64>", torch.full((2,), math.inf, dtype=torch.float64)),
        ("dense<[0.5, 0x7F800000, -3.0e2]> : tensor<3xf32>", torch.tensor([0.5, math.inf, -300.0])),
        ('dense<"0x0000803F00000040"> : tensor<2xf32>', torch.tensor([1.0, 2.0])),
    ],
)
def test_tensors(text: str, expected: torch.Tensor) -> None:
    found = ir.foreign_attributes(read(text))["value"]
    assert isinstance(found, torch.Tensor)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_a_key_of_a_resource_is_the_same_however_often_it_is_read() -> None:
    for _ in range(3):
        for key in ("weight_1", "layers.0.weight"):
            found = ir.foreign_attributes(read(f"dense_resource<{key}> : tensor<2x3xf32>"))["value"]
            assert found == ir.Resource(key)


@pytest.mark.parametrize(
    ("location", "after", "expected"),
    [
        ("", "", None),
        ("loc(unknown)", "", None),
        ('loc("model.py":3:4)', "", ("model.py", 3)),
        ("loc(#loc1)", '#loc1 = loc("model.py":5:0)\n', ("model.py", 5)),
        ("loc(#loc)", "#loc = loc(unknown)\n", None),
        (
            "loc(#loc3)",
            '#loc1 = loc("linear.py":6:0)\n#loc2 = loc("model.py":7:0)\n#loc3 = loc(callsite(#loc1 at #loc2))\n',
            ("linear.py", 6),
        ),
        ('loc(callsite("linear.py":8:0 at "model.py":9:0))', "", ("linear.py", 8)),
        ("loc(#loc2)", '#loc1 = loc("model.py":10:0)\n#loc2 = loc("a name"(#loc1))\n', ("model.py", 10)),
        ("loc(#loc9)", "", None),
    ],
)
def test_locations(location: str, after: str, expected: tuple[str, int] | None) -> None:
    assert ir.foreign_line(read("7 : i64", location, after)) == expected


@pytest.mark.parametrize("text", ["dense<[1, 2]> : tensor<3xf32>", "(", "!"])
def test_what_does_not_parse_is_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=re.compile(r"^[^\n]+$")):
        read(text)


def test_packed_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="bits packed in hexadecimal"):
        ir.foreign_attributes(read('dense<"0x03"> : tensor<3xi1>'))
