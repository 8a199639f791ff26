"""What integers a step can compute: all of them are kept as int32, so that none may leave it.

The range of every integer value follows from the step's inputs (token ids, positions and slots) and from constants. It
is None where it depends on weights or on floats: such a value is taken to fit, and so is a sum with it, but no product.
"""

from collections.abc import Callable
from typing import Any, NoReturn

from forerun import ir
from forerun.errors import UnsupportedOperationError

Range = tuple[int, int]

INT32: Range = (-(1 << 31), (1 << 31) - 1)
BOUNDS: dict[str, Range] = {"i64": INT32, "i32": INT32, "i16": (-(1 << 15), (1 << 15) - 1), "i8": (-128, 127)}

INPUTS: Range = (0, (1 << 24) - 1)
"""Token ids, positions, slots and sizes; more would fit no memory."""


class Ranges:
    """Ranges of values; UnsupportedOperationError where one leaves what its integers are kept as."""

    def __init__(self) -> None:
        self._known: dict[ir.SSAValue, Range | None] = {}

    def check(self, operation: ir.SpecOperation) -> None:
        """Look at all integers that an operation takes and gives."""
        for value in (*operation.operands, *operation.results):
            self.of(value)

    def of(self, value: ir.SSAValue) -> Range | None:
        """The least and the largest number of a value; None where they are not known, or for floats."""
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
            kernel = operation.parent_op()
            return self.of(kernel.operands[operation.args.index(value)]) if isinstance(kernel, ir.Kernel) else INPUTS
        assert isinstance(operation, ir.SpecOperation)
        found = self._result(operation, operation.results.index(value), dtype)
        least, most = BOUNDS[dtype]
        if found is None and BOUNDS[dtype] != INT32:
            _refuse(operation, f"may leave {dtype}, where it would have to wrap")
        if found is not None and not least <= found[0] <= found[1] <= most:
            _refuse(operation, f"may give {found[0] if found[0] < least else found[1]}")
        return found

    def _result(self, operation: ir.SpecOperation, index: int, dtype: str) -> Range | None:
        match operation:
            case ir.Kernel():
                return self.of(operation.yielded[index])
            case ir.Constant():
                value = int(operation.parameter("value"))
                return (value, value)
            case ir.Parameter():
                return None if BOUNDS[dtype] == INT32 else BOUNDS[dtype]
            case ir.Map():
                return self._map(operation, dtype)
            case ir.Concat():
                return _hull([self.of(each) for each in operation.operands])
            case ir.Iota():
                return INPUTS
            case ir.TopK() if index == 1:
                return INPUTS
            case ir.Reduce() if operation.parameter("function") == "argmax":
                return INPUTS
            case ir.Reduce() if operation.parameter("function") in ("sum", "mean"):
                return self._sum(operation, operation.parameter("dims"))
            case ir.Scan():
                return self._sum(operation, [operation.parameter("dim")])
            case _:  # casts, views, choices: numbers of the first operand
                return self.of(operation.operands[0])

    def _sum(self, operation: ir.SpecOperation, dims: Any) -> Range | None:
        given, source = self.of(operation.operands[0]), ir.tensor_type(operation.operands[0])
        count = 1
        for dim in dims:
            size = source.dims[dim]
            count *= size if isinstance(size, int) else INPUTS[1]
        return None if given is None else (min(given[0], given[0] * count), max(given[1], given[1] * count))

    def _map(self, operation: ir.Map, dtype: str) -> Range | None:
        function = operation.parameter("function")
        given = [self.of(each) for each in operation.operands]
        if function == "pow" or (function not in _RANGES and function not in _BITWISE):
            _refuse(operation, "has no kernel for integers")
        if function == "where":
            return _hull(given[1:])
        if function in _BITWISE:
            known = [each for each in given if each is not None and each[0] >= 0]
            if function != "not" and len(known) == len(given):
                return (0, (1 << max(most for _, most in known).bit_length()) - 1)
            return None if BOUNDS[dtype] == INT32 else BOUNDS[dtype]
        if function == "remainder" and given[1] is not None:
            return (min(given[1][0] + 1, 0), max(given[1][1] - 1, 0))
        if function == "mul" and None in given:
            factors = [each for each in given if each is not None]
            if not factors or factors[0][0] < -1 or factors[0][1] > 1:
                _refuse(operation, "may give anything, for a factor is only known when it runs")
            return None
        known = [each for each in given if each is not None]
        return _RANGES[function](*known) if len(known) == len(given) else None


def _refuse(operation: ir.SpecOperation, problem: str) -> NoReturn:
    function = operation.parameter("function")
    name = operation.name if function is None else f"{operation.name} {function}"
    raise UnsupportedOperationError(
        f"the tvm target computes integers as int32, and {name} {problem}; use smaller numbers or float32, or the "
        "reference target."
    )


def _hull(ranges: list[Range | None]) -> Range | None:
    known = [each for each in ranges if each is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if len(known) == len(ranges) else None


def _corners(function: Callable[[int, int], int]) -> Callable[[Range, Range], Range]:
    """The range of a function that takes its extremes at extremes."""

    def span(x: Range, y: Range) -> Range:
        found = [function(a, b) for a in x for b in y]
        return (min(found), max(found))

    return span


def _quotient(x: Range, y: Range) -> Range:
    largest = max(abs(x[0]), abs(x[1]))
    return _corners(lambda a, b: a // b)(x, y) if y[0] > 0 or y[1] < 0 else (-largest, largest)


def _same(x: Range) -> Range:
    return x


_RANGES: dict[str, Callable[..., Range]] = {
    "add": _corners(lambda a, b: a + b),
    "sub": _corners(lambda a, b: a - b),
    "mul": _corners(lambda a, b: a * b),
    "max": _corners(max),
    "min": _corners(min),
    "floor_div": _quotient,
    "remainder": lambda x, y: y,
    "where": lambda condition, x, y: x,
    "neg": lambda x: (-x[1], -x[0]),
    "abs": lambda x: (0 if x[0] <= 0 <= x[1] else min(abs(x[0]), abs(x[1])), max(abs(x[0]), abs(x[1]))),
    "sign": lambda x: (-1, 1),
    "relu": lambda x: (max(x[0], 0), max(x[1], 0)),
    "floor": _same,
    "ceil": _same,
    "round": _same,
}
_BITWISE = frozenset({"and", "or", "xor", "not"})
