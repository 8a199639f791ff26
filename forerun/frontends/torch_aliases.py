"""Which nodes of a traced graph share memory, and what a change through a view makes of the tensor behind it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch._ops import OpOverload
from torch._prims_common import is_contiguous_or_false
from torch.fx import Node

from forerun.frontends.aten import RULES, VIEWS
from forerun.frontends.aten_rules import axis
from forerun.frontends.aten_views import transposed_back
from forerun.ir import Builder, tensor_type

RESHAPES = {"view", "reshape", "view_as", "reshape_as", "unsqueeze", "squeeze", "flatten", "unflatten"}
TRANSPOSES = {"transpose", "swapaxes", "swapdims", "t", "mT", "numpy_T"}
SAME = {"alias", "detach", "contiguous", "dropout", "lift_fresh", "to", "type_as"}
WRITES = {"slice": "slice_scatter", "select": "select_scatter", "narrow": "narrow_scatter"}
"""For a view, the operator that writes into what it shows."""
COPY_UNLESS_CONTIGUOUS = {"reshape", "reshape_as", "flatten", "contiguous"}


def operator_name(target: Callable[..., Any] | str) -> str:
    """`linear` of `aten.linear.default`, `histc` of `aten.histc.default`, the plain name of a Python function."""
    if isinstance(target, OpOverload):
        return target.name().partition("::")[2].partition(".")[0]
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def in_place(node: Node) -> bool:
    """Whether a node's result is its first operand, changed."""
    name = operator_name(node.target)
    return node.op == "call_function" and name.endswith("_") and not name.endswith("__")


def shares(node: Node) -> bool:
    """Whether a node's result may share memory with its first operand."""
    if node.target is operator.getitem:
        (source, _) = node.args
        return isinstance(source, Node) and shares(source)
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return False
    if operator_name(node.target) in ("to", "type_as"):
        return node.meta["val"].dtype == node.args[0].meta["val"].dtype  # another dtype is a copy
    return in_place(node) or operator_name(node.target) in VIEWS


def connected(target: Node, linked: Callable[[Node], bool]) -> set[Node]:
    """The nodes that `linked` results connect with a target, itself included."""
    found, pending = {target}, [target]
    while pending:
        each = pending.pop()
        near = [user for user in each.users if user.args[:1] == (each,) and linked(user)]
        near += [source for source in each.args[:1] if isinstance(source, Node) and linked(each)]
        pending += [other for other in near if other not in found]
        found.update(near)
    return found


def certainly_shares(node: Node) -> bool:
    """Whether a node that `shares` does so in every run: what may be a copy is one unless its operand is contiguous."""
    if operator_name(node.target) not in COPY_UNLESS_CONTIGUOUS:
        return True
    (source, *_) = node.args
    return isinstance(source, Node) and bool(is_contiguous_or_false(source.meta["val"]))


def behind(node: Node) -> Node | None:
    """The node whose memory a node shares."""
    source = node.args[0] if shares(node) else None
    return source if isinstance(source, Node) else None


def seen_after(node: Node, last: int, order: Mapping[Node, int]) -> bool:
    """Whether a node, or a view of it, is used after the place `last` in the graph."""
    return any(order[user] > last or (shares(user) and seen_after(user, last, order)) for user in node.users)


def put_back(build: Builder, view: Node, arguments: Sequence[Any], new: Any) -> Any:
    """Returns what the operand of a view, a node with these arguments, becomes when the view becomes `new`.

    Raises ValueError for a view that has no rule: one with an element in several places, for example.
    """
    name, (source, *rest) = operator_name(view.target), arguments
    if view.target is operator.getitem:
        return tuple(new if at == rest[0] else piece for at, piece in enumerate(source))
    if name in SAME or in_place(view):
        return new
    if view.kwargs:
        raise ValueError(f"{name} with keywords")
    if name in RESHAPES:
        return build.reshape(new, tensor_type(source).dims)
    if name in TRANSPOSES:
        return RULES[name](build, new, *rest)
    if name == "permute":
        return transposed_back(build, new, [axis(source, each) for each in rest[0]])
    if name in WRITES:
        return RULES[WRITES[name]](build, source, new, *rest)
    if name in ("split", "split_with_sizes", "chunk"):
        return build.concat(new, axis(source, rest[1] if len(rest) > 1 else 0))
    if name == "unbind":
        return RULES["stack"](build, new, *rest)
    raise ValueError(f"{name} is not such a view")
