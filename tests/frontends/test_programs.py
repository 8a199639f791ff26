"""What may be imported as a program, and under which names."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from forerun import ir
from forerun.build import lower
from forerun.errors import InvalidOptionError, NotAModelError, TraceError
from forerun.frontends.programs import DERIVED
from forerun.frontends.torch_export import import_programs
from forerun.passes.pipeline import PASSES


class Named(nn.Module):
    """A weight called `step`, like the function that a pass adds, and one called `encode`, like an entry."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.randn(11, 6))
        self.encode = nn.Parameter(torch.randn(6, 11))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.step[input_ids] @ self.encode


def test_a_weight_with_the_name_of_a_function_gets_another() -> None:
    length, tokens = torch.export.Dim("length", min=2, max=64), torch.randint(11, (1, 5))
    program = torch.export.export(Named(), (tokens,), dynamic_shapes=({1: length},))
    module, weights = import_programs(dict.fromkeys(("forward", "encode"), program))
    ir.verify(module)
    assert sorted(weights) == ["forward.encode", "forward.step"]
    assert "@step(" in ir.print_ir(lower(program, max_length=32).module)


class Returns(nn.Module):
    def __init__(self, result: Callable[..., Any]) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: torch.Tensor, k: Any = 2) -> Any:
        return self.result(x, k)


def returning(result: Callable[..., Any], *arguments: Any) -> torch.export.ExportedProgram:
    return torch.export.export(Returns(result), arguments)


ONES = torch.ones(3)
PROGRAMS: dict[str, tuple[type[Exception], Any, str]] = {
    "None": (NotAModelError, lambda: None, "an object of type NoneType was given"),
    "nothing": (NotAModelError, lambda: {}, "none was given"),
    "a list": (NotAModelError, lambda: [1], "an object of type list was given"),
    "a module": (NotAModelError, lambda: {"forward": Named()}, "'forward' is an object of type Named"),
    "a name of a function": (InvalidOptionError, lambda: {"constants": None}, "'constants' is the name of a function"),
    "an odd name": (InvalidOptionError, lambda: {'a b"\n': None}, "is not the name of an entry"),
    "a number as a name": (InvalidOptionError, lambda: {3: None}, "3 is not the name of an entry"),
    "a weight's name": (InvalidOptionError, lambda: {"mix.weight": None}, "'mix.weight' is not the name of an entry"),
    "an integer": (
        TraceError,
        lambda: {"encode": returning(lambda x, k: x * k, ONES, 4)},
        "takes k, which is 4",
    ),
    "a complex tensor": (
        TraceError,
        lambda: {"encode": returning(lambda x, k: x, ONES.cfloat())},
        "torch.complex64",
    ),
    "an integer result": (TraceError, lambda: {"encode": returning(lambda x, k: (x, 3), ONES)}, "returns 3"),
    "no result": (TraceError, lambda: {"encode": returning(lambda x, k: (x, None), ONES)}, "returns None"),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_what_is_no_program_of_tensors_is_refused(case: str) -> None:
    error, programs, named = PROGRAMS[case]
    with pytest.raises(error, match=named):
        import_programs(programs())


def test_the_names_of_functions_that_passes_add_are_no_entries() -> None:
    added = {name for each in PASSES.values() if each.needs is not None for name in each.needs.adds_functions}
    assert {*DERIVED} == (added | {"constants"}) - {"forward"}  # a caller's, or derived from a cached step
