"""The ranges of a step's integers: all are stored as int32, and none may leave its range.

The range of every integer value follows from the step's inputs (token ids, positions and slots) and from constants. It
is None if it depends on weights or floats: such a value is assumed to fit, and so is a sum with it, but not a product.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from forerun import ir
from forerun.errors import UnsupportedOperationError
from forerun.ir import each_of, refused

Range = tuple[int, int]

INT32: Range = (-(1 << 31), (1 << 31) - 1)
BOUNDS: dict[str, Range] = {"i64": INT32, "i32": INT32, "i16": (-(1 << 15), (1 << 15) - 1), "i8": (-128, 127)}

INPUTS: Range = (0, (1 << 24) - 1)
"""Token ids, positions, slots and sizes; larger ones would not fit in memory."""


class Ranges:
    """Ranges of values; UnsupportedOperationError if one exceeds the type that its integers are stored as."""

    def __init__(self) -> None:
        self._known: dict[ir.SSAValue, Range | None] = {}

    def check(self, operation: ir.SpecOperation) -> None:
        """Checks all integer operands and results of an operation."""
        RANGES.of(operation)
        for value in (*operation.operands, *operation.results):
            self.of(value)

    def of(self, value: ir.SSAValue) -> Range | None:
        """Returns the smallest and the largest number of a value; None if unknown, or for floats."""
        if value not in self._known:
            self._known[value] = self._checked(value)
        return self._known[value]

    def _checked(self, value: ir.SSAValue) -> Range | None:
        dtype, operation = ir.tensor_type(value).dtype, value.owner
        if dtype == "i1":
            return (0, 1)
        if dtype not in BOUNDS:
            return None
        if isinstance(operation, ir.Block):
            outer, index = operation.parent_op(), operation.args.index(value)
            if isinstance(outer, ir.Kernel):
                return self.of(outer.operands[index])
            return self.of(outer.inputs[index - 1]) if isinstance(outer, ir.WithBody) and index else INPUTS
        assert isinstance(operation, ir.SpecOperation)
        found = RANGES.of(operation)(self, operation, operation.results.index(value), dtype)
        least, most = BOUNDS[dtype]
        if found is None and BOUNDS[dtype] != INT32:
            _refuse(operation, f"may leave {dtype}, and would then have to wrap")
        if found is not None and not least <= found[0] <= found[1] <= most:
            _refuse(operation, f"may give {found[0] if found[0] < least else found[1]}")
        return found

    def sum(self, x: ir.SSAValue, dims: Sequence[int]) -> Range | None:
        """The range of sums of numbers of a value along some axes."""
        given, source = self.of(x), ir.tensor_type(x)
        count = 1
        for dim in dims:
            size = source.dims[dim]
            count *= size if isinstance(size, int) else INPUTS[1]
        return None if given is None else (min(given[0], given[0] * count), max(given[1], given[1] * count))


def _refuse(operation: ir.SpecOperation, problem: str) -> NoReturn:
    name = operation.name
    if isinstance(operation, ir.Map | ir.Reduce):
        name = f"{name} {operation.function}"
    raise UnsupportedOperationError(
        f"kernels compute integers as int32, but {name} {problem}; use smaller numbers or float32, or the reference "
        "target."
    )


def _unknown(dtype: str) -> Range | None:
    """The range of what is known only when the model runs: that of its dtype if it is narrower than int32."""
    return None if BOUNDS[dtype] == INT32 else BOUNDS[dtype]


def _hull(ranges: Sequence[Range | None]) -> Range | None:
    known = [each for each in ranges if each is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if len(known) == len(ranges) else None


# --- functions of spec.map: `rule(operation, ranges of the operands, dtype)`, a range is None if unknown

Given = Sequence[Range | None]
FunctionRule = Callable[[ir.Map, Given, str], Range | None]


def _known(function: Callable[..., Range]) -> FunctionRule:
    """The function's range if all operands have one."""

    def rule(operation: ir.Map, given: Given, dtype: str) -> Range | None:
        known = [each for each in given if each is not None]
        return function(*known) if len(known) == len(given) else None

    return rule


def _span(function: Callable[[int, int], int]) -> Callable[[Range, Range], Range]:
    """The range of a function that has its extremes at the operands' extremes."""

    def span(x: Range, y: Range) -> Range:
        found = [function(a, b) for a in x for b in y]
        return (min(found), max(found))

    return span


def _mul(operation: ir.Map, given: Given, dtype: str) -> Range | None:
    known = [each for each in given if each is not None]
    if len(known) == len(given):
        return _span(lambda a, b: a * b)(*known)
    if not known or known[0][0] < -1 or known[0][1] > 1:
        _refuse(operation, "may give any value, because a factor is known only at run time")
    return None


def _remainder(operation: ir.Map, given: Given, dtype: str) -> Range | None:
    divisor = given[1]
    return None if divisor is None else (min(divisor[0] + 1, 0), max(divisor[1] - 1, 0))


def _bitwise(operation: ir.Map, given: Given, dtype: str) -> Range | None:
    known = [each for each in given if each is not None and each[0] >= 0]
    if len(known) == len(given):
        return (0, (1 << max(most for _, most in known).bit_length()) - 1)
    return _unknown(dtype)


def _no_kernel(operation: ir.Map, given: Given, dtype: str) -> NoReturn:
    _refuse(operation, "has no kernel for integers")


def _quotient(x: Range, y: Range) -> Range:
    largest = max(abs(x[0]), abs(x[1]))
    return _span(lambda a, b: a // b)(x, y) if y[0] > 0 or y[1] < 0 else (-largest, largest)


def _abs(x: Range) -> Range:
    return (0 if x[0] <= 0 <= x[1] else min(abs(x[0]), abs(x[1])), max(abs(x[0]), abs(x[1])))


FUNCTIONS: ir.FunctionTable[FunctionRule] = ir.FunctionTable(
    "ranges of functions of integers",
    {
        "add": _known(_span(lambda a, b: a + b)),
        "sub": _known(_span(lambda a, b: a - b)),
        "mul": _mul,
        "max": _known(_span(max)),
        "min": _known(_span(min)),
        "floor_div": _known(_quotient),
        "remainder": _remainder,
        "where": lambda operation, given, dtype: _hull(given[1:]),
        "neg": _known(lambda x: (-x[1], -x[0])),
        "abs": _known(_abs),
        "sign": _known(lambda x: (-1, 1)),
        "relu": _known(lambda x: (max(x[0], 0), max(x[1], 0))),
        **each_of(_known(lambda x: x), "floor", "ceil", "round"),
        **each_of(_bitwise, "and", "or", "xor"),
        "not": lambda operation, given, dtype: _unknown(dtype),
        **each_of(_no_kernel, "div", "pow", "exp", "expm1", "exp2", "log", "log1p", "log2", "sqrt", "rsqrt"),
        **each_of(_no_kernel, "reciprocal", "sin", "cos", "tanh", "erf", "sigmoid", "silu", "gelu", "gelu_tanh"),
        **each_of(_no_kernel, "softplus", "log_sigmoid"),
        **each_of(refused("the comparison {name} does not give an integer"), *sorted(ir.COMPARISONS)),
    },
)

REDUCTIONS: ir.ReductionTable[Callable[[Ranges, ir.Reduce], Range | None]] = ir.ReductionTable(
    "ranges of reductions",
    {
        "argmax": lambda ranges, operation: INPUTS,
        **each_of(lambda ranges, operation: ranges.sum(operation.x, operation.dims), "sum", "mean"),
        **each_of(lambda ranges, operation: ranges.of(operation.x), "max", "min", "any", "all"),
    },
)


# --- operations: `rule(ranges, operation, index of the result, dtype)`

Rule = Callable[[Ranges, Any, int, str], Range | None]


def _map(ranges: Ranges, operation: ir.Map, index: int, dtype: str) -> Range | None:
    return FUNCTIONS[operation.function](operation, [ranges.of(each) for each in operation.inputs], dtype)


def _of_first(ranges: Ranges, operation: ir.SpecOperation, index: int, dtype: str) -> Range | None:
    """The result consists of numbers of the first operand, moved or chosen."""
    return ranges.of(operation.operands[0])


def _of_floats(ranges: Ranges, operation: ir.SpecOperation, index: int, dtype: str) -> NoReturn:
    """Products, norms, rotations, softmax and attention take floats only."""
    _refuse(operation, "has no kernel for integers")


RANGES: ir.OperationTable[Rule] = ir.OperationTable(
    "integer ranges",
    {
        ir.Kernel: lambda ranges, operation, index, dtype: ranges.of(operation.yielded[index]),
        ir.Constant: lambda ranges, operation, index, dtype: (int(operation.value), int(operation.value)),
        ir.Parameter: lambda ranges, operation, index, dtype: _unknown(dtype),
        ir.Iota: lambda ranges, operation, index, dtype: INPUTS,
        ir.Map: _map,
        ir.Concat: lambda ranges, operation, index, dtype: _hull([ranges.of(each) for each in operation.inputs]),
        ir.TopK: lambda ranges, operation, index, dtype: INPUTS if index else ranges.of(operation.x),
        ir.Reduce: lambda ranges, operation, index, dtype: REDUCTIONS[operation.function](ranges, operation),
        ir.Scan: lambda ranges, operation, index, dtype: ranges.sum(operation.x, [operation.dim]),
        **each_of(_of_first, ir.Cast, ir.Reshape, ir.Broadcast, ir.Transpose, ir.Slice, ir.Gather, ir.TakeAlong),
        **each_of(_of_floats, ir.Computation, ir.StepOperation),
        ir.Ancestors: lambda ranges, operation, index, dtype: (-1, INPUTS[1]),
        ir.StateWrite: lambda ranges, operation, index, dtype: None,
        **each_of(refused("does not give integers"), ir.Return, ir.Yield, ir.Function, ir.Weight, ir.State),
    },
)


def as_int32(target: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Returns a weight of integers as int32. Raises UnsupportedOperationError if one does not fit."""
    whole = tensor.to(torch.int32)
    if (outside := tensor[whole != tensor]).numel():
        raise UnsupportedOperationError(
            f"the {target} target stores integers as int32, but the weight {name} holds {int(outside[0])}; use smaller "
            "numbers, or the reference target."
        )
    return whole
