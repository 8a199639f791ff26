"""torch.export programs to IR: `@forward(input_ids[1, T]) -> logits[1, T, V]`, operation by operation."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, GraphModule, Node

from forerun.errors import TraceError, UnsupportedOperationError
from forerun.frontends.aten import RULES
from forerun.frontends.aten_complex import Pair, complex_rule
from forerun.frontends.cached_step import CACHED
from forerun.frontends.forward import (
    FORWARD,
    LONGEST,
    SEQUENCE,
    SourceLine,
    at,
    innermost_line,
    location,
    require_counts,
    require_tokens,
    unsupported,
)
from forerun.frontends.programs import DERIVED, require_programs, require_tensors, returned_tensors
from forerun.frontends.sizes import traced_dim, traced_sizes
from forerun.frontends.torch_aliases import (
    behind,
    certainly_shares,
    connected,
    in_place,
    operator_name,
    put_back,
    seen_after,
    shares,
)
from forerun.frontends.weight_symbols import WeightSymbols
from forerun.frontends.weights import program_weights
from forerun.ir import (
    Builder,
    Dim,
    Function,
    ModuleOp,
    Parameter,
    Return,
    SSAValue,
    TensorType,
    VerifyException,
    dtype_name,
    tensor_type,
)

SOURCE = "S"
"""The name of the first dynamic dimension in another function."""

TRACED = "The traced program"
"""What errors call a program that has no other name."""

IGNORED = frozenset({"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size"})

WEIGHT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def import_program(program: ExportedProgram) -> ModuleOp:
    """The module of an exported program, with `@forward` and one `spec.weight` for each tensor it uses.

    The program takes token ids `[1, T]` with T dynamic and gives logits `[1, T, V]`. Raises TraceError for another
    signature, UnsupportedOperationError for an operator without a rule (naming it and its source line).
    """
    return import_programs({FORWARD: program})[0]


def import_programs(programs: Mapping[str, ExportedProgram]) -> tuple[ModuleOp, dict[str, torch.Tensor]]:
    """One module with a function for each program, and its weights by symbol; a tensor is one `spec.weight`, however
    many functions use it.

    `@forward` is as in `import_program`. Any other takes tensors under the names of the traced arguments, and gives
    one result or several; its dynamic dimensions are called S, S1, ... in the order in which they are met. Raises
    TraceError and UnsupportedOperationError likewise, NotAModelError for what is no program, InvalidOptionError for a
    name that no entry can have.
    """
    require_programs(programs)
    shared = WeightSymbols(ModuleOp([]), {*programs, *DERIVED})
    for name, program in programs.items():
        shared.module.body.block.add_op(_function(name, program, shared))
    return shared.module, shared.tensors


def _function(name: str, program: ExportedProgram, shared: WeightSymbols) -> Function:
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    results = [spec for spec in program.graph_signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    inputs = [node for node in placeholders if kinds[node.name].kind == InputKind.USER_INPUT]
    require_tensors(name, inputs)
    names = _sequence(inputs, len(results)) if name == FORWARD else _dimensions(inputs)
    if name == CACHED:  # all states that grow have a record for each of the same positions
        names = dict.fromkeys(names, SOURCE)
    called = ["input_ids"] if name == FORWARD else [str(node.name) for node in inputs]
    typed = [_type_of(name, node, names) for node in inputs]
    function = Function.of(name, list(zip(called, typed, strict=True)))
    bounds = {
        str(symbol): (int(each.lower), int(min(each.upper, LONGEST)))
        for symbol, each in program.range_constraints.items()
        if str(symbol) in names
    }
    importer = _Importer(function, names, bounds)
    importer.values.update(zip(inputs, function.block.args, strict=True))
    importer.kept.update(each for each in placeholders if kinds[each.name].kind in WEIGHT_KINDS)
    weights = program_weights(program)
    used: dict[str, torch.Tensor] = {}
    for node in placeholders:
        spec = kinds[node.name]
        if spec.kind not in WEIGHT_KINDS or not node.users:
            continue
        kind, build = _type_of(name, node, names), Builder(function.block, hint=_hint(node))
        tensor = weights[str(spec.target)]
        if spec.kind == InputKind.CONSTANT_TENSOR and tensor.numel() == 1:
            constant = build.constant(tensor.item(), kind.dtype)  # in the source code: patterns must be able to read it
            importer.values[node] = build.reshape(constant, kind.dims)
        else:
            weight = shared.weight(str(spec.target), tensor, kind, name)
            used[weight["symbol"]] = tensor
            importer.values[node] = build.add(Parameter, **weight)
    returned = returned_tensors(name, importer.run(program.graph))
    Builder(function.block).emit(Return.make(*returned))
    shared.tensors.update(used)
    return function


def _sequence(inputs: Sequence[Node], results: int) -> dict[str, str]:
    """The name of the sequence dimension of `@forward`; TraceError if it does not map token ids to logits."""
    require_counts(TRACED, len(inputs), results)
    shape = inputs[0].meta["val"].shape
    require_tokens(TRACED, traced_sizes(shape))
    return {str(shape[1].node.expr): SEQUENCE}


def _dimensions(inputs: Sequence[Node]) -> dict[str, str]:
    """Names for the dynamic dimensions of a function's inputs."""
    found: dict[str, str] = {}
    for node in inputs:
        for size in node.meta["val"].shape:
            if isinstance(size, torch.SymInt) and (symbol := str(size.node.expr)).isidentifier():
                found.setdefault(symbol, f"{SOURCE}{len(found) or ''}")
    return found


class _Importer:
    """Imports the nodes of a graph into the function's block; nested graphs are imported in place."""

    def __init__(self, function: Function, names: Mapping[str, str], bounds: Mapping[str, tuple[int, int]]) -> None:
        self.function = function
        self.names = names
        self.bounds = bounds
        self.values: dict[Node, Any] = {}
        self.kept: set[Node] = set()
        """Weights, buffers and constants."""
        self.borrowed: set[Node] = set()
        """What nested graphs get from outside."""

    def run(self, graph: Graph) -> list[Any]:
        for node in graph.nodes:
            if node.op == "output":
                (results,) = node.args
                return [self.operand(each) for each in (results if isinstance(results, Sequence) else (results,))]
            if node.op == "get_attr":
                owner = graph.owning_module
                assert owner is not None
                self.values[node] = operator.attrgetter(str(node.target))(owner)
            elif node.op == "call_function":
                self.values[node] = self.call(node)
        return []

    def operand(self, argument: Any) -> Any:
        """An argument of a node: tensors as IR values, sizes as dimensions, the rest as it is."""
        if isinstance(argument, Node):
            if argument in self.values:
                return self.values[argument]
            raise self.unsupported(argument, "is used but has no value")
        if isinstance(argument, (list, tuple)):
            return [self.operand(each) for each in argument]
        return argument

    def call(self, node: Node) -> Any:
        size = node.meta.get("val")
        if isinstance(size, torch.SymInt):
            return self.dim(node, size)
        if isinstance(size, int) and not isinstance(size, bool):
            return size
        name = operator_name(node.target)
        if name in IGNORED or isinstance(size, torch.SymBool | bool):
            return None
        arguments = self.operand(node.args)
        if node.target is operator.getitem:
            return arguments[0][arguments[1]]
        if nested := [each for each in arguments if isinstance(each, GraphModule)]:
            after = arguments[arguments.index(nested[0]) + 1 :]
            return self.inline(nested[0], after)
        mutates = in_place(node)
        if mutates:
            self.require_own(node)
        rule = RULES.get(name) or (RULES.get(name[:-1]) if mutates else None)
        if rule is None or any(isinstance(each, Pair) for each in arguments):
            rule = complex_rule(name)
        if rule is None:
            raise self.unsupported(node, "has no rule")
        keywords = {key: self.operand(value) for key, value in node.kwargs.items()}
        build = Builder(self.function.block, location(source_line(node)), _hint(node))
        try:
            result = rule(build, *arguments, **keywords)
        except (ValueError, TypeError, KeyError, AssertionError, VerifyException) as error:
            raise self.unsupported(node, f"is used in a form without a rule ({error})") from error
        self.check(node, result)
        if mutates:
            self.assign(node, result)
        return result

    def inline(self, module: GraphModule, arguments: Sequence[Any]) -> Any:
        placeholders = [each for each in module.graph.nodes if each.op == "placeholder"]
        self.borrowed.update(placeholders)
        self.values.update(zip(placeholders, arguments, strict=True))
        return self.run(module.graph)

    def require_own(self, node: Node) -> None:
        """Raise TraceError if a node changes a tensor that the model keeps: once compiled, it would not change."""
        target = node.args[0]
        kept = connected(target, shares) & self.kept if isinstance(target, Node) else set[Node]()
        for each in kept:
            raise TraceError(
                f"The model changes its state {_hint(each).removeprefix('c_').removeprefix('model_')} as it runs"
                f"{at(source_line(node))}, which would not change once compiled: write a forward pass without state."
            )

    def assign(self, node: Node, result: SSAValue) -> None:
        """A change in place becomes new values under the names of all tensors that share the changed memory."""
        target = node.args[0]
        assert isinstance(target, Node)
        order = {each: index for index, each in enumerate(node.graph.nodes)}
        same, shared = connected(target, in_place), connected(target, shares)
        if shared & self.borrowed:
            raise self.unsupported(node, "changes a tensor that comes from outside its region")
        self.values.update(dict.fromkeys(same, result))
        changed = same | self.put_back(node, target)
        for each in sorted(shared - changed, key=order.__getitem__):
            if order[each] < order[node] and seen_after(each, order[node], order):
                self.values[each] = self.seen_again(node, each)

    def put_back(self, node: Node, view: Node) -> set[Node]:
        """Gives the tensors behind a changed view their new values; returns them."""
        build, changed = Builder(self.function.block, location(source_line(node)), _hint(node)), set[Node]()
        while (source := behind(view)) is not None:
            self.require_view(node, view)
            try:
                new = put_back(build, view, self.operand(view.args), self.values[view])
            except (ValueError, VerifyException) as error:
                raise self.unsupported(node, f"changes a tensor through a view without a rule ({error})") from error
            self.values[source] = new
            changed.add(source)
            view = source
        return changed

    def seen_again(self, node: Node, view: Node) -> Any:
        """The value of a view of memory that a node has changed."""
        self.require_view(node, view)
        return self.operand(view.args[0]) if in_place(view) else self.call(view)

    def require_view(self, node: Node, view: Node) -> None:
        if not certainly_shares(view):
            raise self.unsupported(node, "changes a tensor that is also seen through what may be a copy")

    def check(self, node: Node, result: Any) -> None:
        """The result of a rule must have the shape and dtype that torch.export saw."""
        expected = node.meta.get("val")
        for value, tensor in zip(_flat(result), _flat(expected), strict=True):
            if not isinstance(tensor, torch.Tensor):
                continue
            try:
                kind = TensorType.of(
                    [self.dim(node, size) for size in tensor.shape], dtype_name(tensor.dtype.to_real())
                )
            except ValueError as error:
                raise self.unsupported(node, f"gives {tensor.dtype} ({error})") from error
            for part in (value.real, value.imaginary) if isinstance(value, Pair) else (value,):
                if tensor_type(part) != kind:
                    raise self.unsupported(node, f"was imported as {part.type}, but gives {kind}")

    def dim(self, node: Node, size: int | torch.SymInt) -> Dim:
        try:
            return traced_dim(size, self.names, self.bounds)
        except ValueError as error:
            raise self.unsupported(node, f"has {error}") from error

    def unsupported(self, node: Node, what: str) -> UnsupportedOperationError:
        return unsupported(operator_name(node.target) or node.name, source_line(node), what)


def source_line(node: Node) -> SourceLine | None:
    """The innermost line of the model's source that a node comes from."""
    return innermost_line(node.meta.get("stack_trace") or "")


def _hint(node: Node) -> str:
    return node.name.removeprefix("p_").removeprefix("b_")


def _flat(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _type_of(function: str, node: Node, names: Mapping[str, str]) -> TensorType:
    tensor = node.meta["val"]
    try:
        return TensorType.of([traced_dim(size, names, {}) for size in tensor.shape], dtype_name(tensor.dtype))
    except ValueError as error:
        raise TraceError(
            f"The program of {function!r} takes {_hint(node)} of shape {[*tensor.shape]}, which cannot be imported "
            f"({error}); trace it with another shape or dtype."
        ) from error
