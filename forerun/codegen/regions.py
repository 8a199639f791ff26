"""A function's regions, for every target: the kernels of a step, and the dimension names of its arguments."""

from __future__ import annotations

from dataclasses import dataclass

from forerun import dims as dimensions
from forerun import ir


@dataclass
class Region:
    """A kernel, or a single operation of a function treated as one."""

    name: str
    operations: list[ir.SpecOperation]
    arguments: dict[ir.SSAValue, ir.SSAValue]  # the body's value -> the function's value
    results: list[tuple[ir.SSAValue, ir.SSAValue]]  # yielded value, the function's value
    branch: int | None = None  # the residual branch that it belongs to
    stream: int | None = None  # its first result is this value of the residual stream


def regions(function: ir.Function) -> list[Region]:
    """The kernels of a function in order; an operation outside of kernels is one by itself."""
    found: list[Region] = []
    for operation in function.body:
        if isinstance(operation, ir.Parameter | ir.Constant | ir.Return):
            continue
        if isinstance(operation, ir.Kernel):
            arguments: dict[ir.SSAValue, ir.SSAValue] = dict(
                zip(operation.region.block.args, operation.operands, strict=True)
            )
            results: list[tuple[ir.SSAValue, ir.SSAValue]] = list(
                zip(operation.yielded, operation.results, strict=True)
            )
            body = operation.body
            name, marks = operation.kind, (operation.branch, operation.stream)
        else:
            arguments = {value: value for value in operation.operands}
            results = [(value, value) for value in operation.results]
            body = [operation]
            name, marks = operation.mnemonic, (None, None)
        found.append(Region(f"{name}_{len(found)}", body, arguments, results, *marks))
    return found


def symbols(function: ir.Function) -> list[str]:
    """The dimension names of a function's arguments."""
    found: dict[str, None] = {}
    for argument in function.block.args:
        for dim in ir.tensor_type(argument).dims:
            if name := dimensions.symbol(dim):
                found[name] = None
    return list(found)
