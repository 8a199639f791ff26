"""What every code generator needs from a module: the kernels of its entries, and the block size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from forerun import ir
from forerun.codegen.stream_reads import stream_reads
from forerun.errors import UnsupportedOperationError
from forerun.signature import STEP

BLOCK = 16
"""Positions of a block if a module does not specify them."""
ROWS = ("N", "M")
"""The dimensions of a step's rows, and of those whose logits are wanted."""


@dataclass
class Region:
    """A kernel, or a single operation of a function treated as one."""

    name: str
    operations: list[ir.SpecOperation]
    arguments: dict[ir.SSAValue, ir.SSAValue]  # the body's value -> the function's value
    results: list[tuple[ir.SSAValue, ir.SSAValue]]  # yielded value, the function's value
    branch: int | None = None  # the residual branch that it belongs to
    stream: int | None = None  # the number of the residual stream's value that is its first result
    adds: bool | None = None  # whether it reads the stream as an addend or as the branch's input (`stream_reads`)


def regions(function: ir.Function) -> list[Region]:
    """Returns the kernels of a function in order; an operation outside kernels is one by itself.

    Kernel names are unique in a module: an entry other than the step prefixes its own name. A kernel without a label is
    named by its kind and its number.
    """
    prefix = "" if function.symbol == STEP else f"{function.symbol}."
    found: list[Region] = []
    reads = stream_reads(function)
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
            name = operation.label or f"{operation.kind}_{len(found)}"
            marks = operation.branch, operation.stream, reads.get(operation)
        else:
            arguments = {value: value for value in operation.operands}
            results = [(value, value) for value in operation.results]
            body = [operation]
            name = f"{operation.mnemonic}_{len(found)}"
            marks = operation.branch if isinstance(operation, ir.Exchange) else None, None, None
        found.append(Region(f"{prefix}{name}", body, arguments, results, *marks))
    return found


def block_size(module: ir.ModuleOp) -> int | None:
    """Returns the positions P of a block of the cache; None if no entry reads one.

    Raises UnsupportedOperationError if operations use blocks of several sizes.
    """
    operations = (each for entry in ir.entries(module).values() for each in ir.walk(entry.body))
    blocks = {each.block for each in operations if isinstance(each, ir.TreeAttention | ir.Ancestors)}
    if len(blocks) > 1:
        raise UnsupportedOperationError(f"The module has blocks of {sorted(blocks)} positions; use one size.")
    return next(iter(blocks), None)


def products(module: ir.ModuleOp) -> Iterator[tuple[ir.WeightProduct, ir.Parameter]]:
    """Yields the products with weights of all entries, each with the parameter that it reads, also from in a kernel."""
    outer: dict[ir.SSAValue, ir.SSAValue] = {}
    for operation in (each for entry in ir.entries(module).values() for each in ir.walk(entry.body)):
        if isinstance(operation, ir.Kernel):
            outer.update(zip(operation.region.block.args, operation.operands, strict=True))
        elif isinstance(operation, ir.WeightProduct):
            weight = ir.first_of(operation.weight)
            owner = outer.get(weight, weight).owner
            if isinstance(owner, ir.Parameter):
                yield operation, owner
