"""Which functions of torch compute each row of a tensor by itself: along its first axis nothing meets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor

ELEMENTWISE = {
    *("add", "sub", "mul", "div", "true_divide", "neg", "pow", "square", "sqrt", "rsqrt", "reciprocal", "abs", "exp"),
    *("log", "tanh", "sigmoid", "relu", "relu6", "silu", "gelu", "softplus", "leaky_relu", "elu", "mish", "hardswish"),
    *("erf", "sin", "cos", "clamp", "clamp_min", "clamp_max", "minimum", "maximum", "where", "dropout", "rsub"),
    *("to", "float", "half", "bfloat16", "double", "type", "type_as", "contiguous", "clone", "detach"),
}
"""Functions of each number by itself."""
ALONG = {"softmax": 1, "log_softmax": 1, "sum": 1, "mean": 1, "amax": 1, "amin": 1, "chunk": 2, "split": 2, "cat": 1}
"""Functions along a dimension, by the place of that argument; it must be the last one."""
OPERATORS = {
    **{f"__{kind}{name}__": name for name in ("add", "sub", "mul", "div", "truediv", "pow") for kind in ("", "r", "i")},
    **{"__neg__": "neg", "__abs__": "abs", "__matmul__": "matmul", "__getitem__": "getitem"},
}
"""What functions are called that are written as operators."""


def tensors(values: Any) -> list[Tensor]:
    """All tensors in lists and tuples."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, (list, tuple)):
        return [tensor for each in values for tensor in tensors(each)]
    return []


def is_row_by_row(name: str, args: Sequence[Any], named: dict[str, Any], has_rows: Callable[[Tensor], bool]) -> bool:
    """Whether a function, by its name in torch, keeps the rows of those of its operands that have rows apart."""
    given = tensors([*args, *named.values()])
    rows = [each for each in given if has_rows(each)]
    rank = max(each.dim() for each in rows)
    if any(each.dim() != rank for each in rows) or rank < 1:
        return False
    plain = OPERATORS.get(name, name.removesuffix("_"))
    plain = "div" if plain == "truediv" else plain
    first = args[0] if args else None
    if plain in ELEMENTWISE:
        return all(each.dim() <= rank for each in given) and "out" not in named
    if plain in ALONG and rank >= 2:
        place = ALONG[plain]
        dim = named.get("dim", args[place] if len(args) > place else None)
        dims = list(dim) if isinstance(dim, (list, tuple)) else [dim]
        return all(each in (-1, rank - 1) for each in dims)
    alone = any(first is each for each in rows) and len(rows) == 1
    if plain == "linear":
        return alone and rank >= 2
    if plain in ("matmul", "mm"):
        return alone and rank >= 2 and len(given) == 2 and given[1].dim() == 2
    if plain in ("layer_norm", "rms_norm"):
        return alone and rank >= 2 and len(args) >= 2 and len(args[1]) == 1
    if plain == "unsqueeze":
        dim = named.get("dim", args[1] if len(args) > 1 else 0)
        return dim == -1 or 0 < dim <= rank
    if plain in ("view", "reshape"):
        return _keeps_rows(args[0], args[1:])
    if plain == "getitem":
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        others = all(each is None or isinstance(each, (int, slice)) for each in parts[1:])
        return parts[0] in (Ellipsis, slice(None)) and others and (parts[0] is not Ellipsis or len(parts) < rank + 1)
    return False


def _keeps_rows(rows: Tensor, sizes: Sequence[Any]) -> bool:
    """Whether a view changes the features of rows alone."""
    asked = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)) else list(sizes)
    known = [each for each in asked[1:] if isinstance(each, int) and each > 0]
    return asked[:1] == [-1] and len(known) == len(asked) - 1 and prod(known) == prod(rows.shape[1:])
