"""How the kernels of a step read the residual stream: as the input of a branch, or as an addend of its sum.

Where layers are evaluated from the same input (`passes.parallel_layers`), a branch reads an earlier value of the
stream, and still adds to the last one. A kernel can take part in that if its reads of the stream are all of one kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from forerun import ir

Same = Mapping[ir.SSAValue, ir.SSAValue]
"""What an argument or a result of a kernel stands for."""


def stream_reads(function: ir.Function) -> dict[ir.Operation, bool]:
    """Returns, by kernel that reads the stream's value before its branch, whether that is an addend in all of its
    reads (True) or in none (False).

    A kernel that reads it in both ways is left out, and so are those of a branch whose sum is not found.
    """
    kernels = [each for each in function.body if isinstance(each, ir.Kernel)]
    same: dict[ir.SSAValue, ir.SSAValue] = {}
    for each in kernels:
        same.update(zip(each.region.block.args, each.operands, strict=True))
        same.update(zip(each.results, each.yielded, strict=True))
    stream = {each.stream: _origin(each.results[0], same) for each in kernels if each.stream is not None}
    found: dict[ir.Operation, bool] = {}
    for number, value in stream.items():
        before = stream.get(number - 1)
        sums = set[ir.Operation]() if before is None else _additions(value, before, same)
        for kernel in kernels:
            if sums and kernel.branch == number - 1:
                read = [each for each in kernel.region.block.args if _origin(each, same) is before]
                kinds = {reader in sums for each in read for reader in _readers(each)}
                if len(kinds) == 1:
                    found[kernel] = kinds.pop()
    return found


def _additions(value: ir.SSAValue, before: ir.SSAValue, same: Same) -> set[ir.Operation]:
    """The additions through which `before` is an addend of a value; none if it is not.

    As in `passes.residual.addends`, it is not by a partial sum that something else reads.
    """
    owner = value.owner
    if not (isinstance(owner, ir.Map) and owner.function == "add"):
        return set()
    for operand in owner.inputs:
        origin = _origin(operand, same)
        if origin is before:
            return {owner}
        if _read_once(operand, same) and (inner := _additions(origin, before, same)):
            return {owner, *inner}
    return set()


def _stands_for(value: ir.SSAValue, same: Same) -> ir.SSAValue | None:
    """The value that a value is the same as, or a view of; None if it is computed."""
    return value.owner.x if isinstance(value.owner, ir.Reshape) else same.get(value)


def _origin(value: ir.SSAValue, same: Same) -> ir.SSAValue:
    while (found := _stands_for(value, same)) is not None:
        value = found
    return value


def _read_once(value: ir.SSAValue, same: Same) -> bool:
    """Whether a value has one reader under all its names."""
    here: ir.SSAValue | None = value
    while here is not None:
        if len(list(here.uses)) > 1:
            return False
        here = _stands_for(here, same)
    return True


def _readers(value: ir.SSAValue) -> Iterator[ir.Operation]:
    """The operations that read a value, also as a view of it."""
    for use in value.uses:
        if isinstance(use.operation, ir.Reshape):
            yield from _readers(use.operation.result)
        else:
            yield use.operation
