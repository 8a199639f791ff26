"""Modules of the torch dialect to IR: `@forward(input_ids[1, T]) -> logits[1, T, V]`, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import torch

from forerun.errors import NotAModelError, UnsupportedOperationError
from forerun.frontends.aten import RULES
from forerun.frontends.forward import (
    FORWARD,
    LONGEST,
    SEQUENCE,
    SourceLine,
    location,
    require_counts,
    require_logits,
    require_range,
    require_tokens,
    unsupported,
)
from forerun.frontends.mlir_text import MlirModule
from forerun.frontends.programs import DERIVED
from forerun.frontends.torch_dialect import SCALARS, DeclaredTensor, arguments, callee, declared_tensor
from forerun.frontends.torch_export import IGNORED
from forerun.frontends.weight_symbols import WeightSymbols
from forerun.ir import (
    Builder,
    Function,
    ModuleOp,
    Operation,
    Parameter,
    Resource,
    Return,
    SSAValue,
    TensorType,
    VerifyException,
    dtype_name,
    foreign_attributes,
    foreign_line,
    foreign_name,
    foreign_type,
    tensor_type,
)

ENTRIES = ("forward", "main")
"""The names by which the model's function is known among several."""

SAME = {"torch.copy.to_vtensor", "torch.copy.to_tensor", "torch.tensor_static_info_cast", "torch.derefine"}
"""Operations that give their operand."""
SILENT = {"torch.bind_symbolic_shape", "torch.symbolic_int", "torch.runtime.assert"}
"""Operations that only say what is known of sizes."""


Tensors = Callable[[str, DeclaredTensor], torch.Tensor]
"""The tensor of a resource, by its key and its type."""


def import_module(module: MlirModule, tensors: Tensors, max_length: int) -> tuple[ModuleOp, dict[str, torch.Tensor]]:
    """The module with `@forward`, and its weights by symbol.

    Raises TraceError for another signature, UnsupportedOperationError for an operation without a rule, NotAModelError
    if it is not clear which function is the model.
    """
    entry = _entry(module)
    body = entry.regions[0].block
    returned = body.last_op
    require_counts(module.name, len(body.args), 0 if returned is None else len(returned.operands))
    assert returned is not None
    (tokens,) = body.args
    declared = declared_tensor(foreign_type(tokens))
    require_tokens(module.name, [] if declared is None else ["?" if each is None else each for each in declared.sizes])
    assert declared is not None
    bounds = _bounds(tokens)
    if bounds is not None:
        require_range(module.name, *bounds, max_length)
    function = Function.of(FORWARD, [("input_ids", TensorType.of((1, SEQUENCE), declared.dtype))])
    importer = _Importer(module.name, function, tensors)
    importer.values[tokens] = function.block.args[0]
    for operation in body.ops:
        if operation is not returned:
            importer.take(operation)
    (logits,) = (importer.values[each] for each in returned.operands)
    require_logits(module.name, tensor_type(logits).dims if isinstance(logits, SSAValue) else [], SEQUENCE)
    Builder(function.block).emit(Return.make(logits))
    importer.weights.module.body.block.add_op(function)
    return importer.weights.module, importer.used


def _entry(module: MlirModule) -> Operation:
    """The function that is the model."""
    found = {
        str(foreign_attributes(each).get("sym_name")): each
        for each in module.operations.body.block.ops
        if foreign_name(each) == "func.func" and each.regions[0].blocks
    }
    named = [found[each] for each in ENTRIES if each in found] or [*found.values()][:2]
    if not found or (len(found) > 1 and not any(each in found for each in ENTRIES)):
        shown = f"the functions {', '.join(found)}" if found else "no function"
        raise NotAModelError(f"{module.name} holds {shown}: call the one that is the model forward or main.")
    return named[0]


def _bounds(tokens: SSAValue) -> tuple[int, int] | None:
    """The least and the greatest length that a module declares for its tokens, if it does."""
    for use in tokens.uses:
        if foreign_name(use.operation) != "torch.bind_symbolic_shape":
            continue
        for symbol in use.operation.operands[1:]:
            assert isinstance(symbol.owner, Operation)
            known = foreign_attributes(symbol.owner)
            least, most = known.get("min_val"), known.get("max_val")
            if isinstance(least, int) and isinstance(most, int):
                return least, min(most, LONGEST)
    return None


class _Importer:
    """Imports the operations of a function: tensors become values of the IR, sizes dimensions, the rest Python's."""

    def __init__(self, name: str, function: Function, tensors: Tensors) -> None:
        self.name = name
        self.function = function
        self.tensors = tensors
        self.values: dict[SSAValue, Any] = {}
        self.weights = WeightSymbols(ModuleOp([]), {FORWARD, *DERIVED})
        self.used: dict[str, torch.Tensor] = {}
        self.literals: dict[str, torch.Tensor] = {}

    def take(self, operation: Operation) -> None:
        """Imports one operation. Raises UnsupportedOperationError if it has no rule."""
        attributes = foreign_attributes(operation)
        name = foreign_name(operation)
        name = str(attributes.get("name", name)) if name == "torch.operator" else name
        try:
            given = [self.values[each] for each in operation.operands]
            result = self.result(operation, name, given, attributes)
            results = result if len(operation.results) > 1 else (result,) * len(operation.results)
            self.values.update(zip(operation.results, results, strict=True))
        except (ValueError, TypeError, KeyError, IndexError, AssertionError, VerifyException) as error:
            raise self.unsupported(operation, name, f"is used in a form without a rule ({error})") from error
        for value in operation.results:
            self.check(operation, name, value)

    def result(self, operation: Operation, name: str, given: list[Any], attributes: Mapping[str, Any]) -> Any:
        """What an operation gives: one value, or several where it has several results."""
        if name in SAME:
            return given[0]
        if name in SILENT:
            return None
        if name.startswith("torch.constant."):
            return attributes.get("value")
        if name == "torch.vtensor.literal":
            return self.literal(operation, attributes["value"])
        if name in ("torch.prim.ListConstruct", "torch.prim.TupleConstruct"):
            return given
        if name in ("torch.prim.ListUnpack", "torch.prim.TupleUnpack"):
            return given[0] if len(operation.results) > 1 else given[0][0]
        return self.called(operation, name, given)

    def called(self, operation: Operation, name: str, given: list[Any]) -> Any:
        """What an operator of a library gives: a size, a number, or what its rule builds."""
        operator = callee(name)
        if operator is None:
            raise self.unsupported(operation, name, "has no rule")
        if operator.name in IGNORED:
            return None
        if (operator.name, operator.overload) == ("size", "int"):
            return tensor_type(given[0]).dims[given[1]]
        numbers = not any(isinstance(each, SSAValue | list) for each in given)
        if numbers and operator.name in SCALARS and declared_tensor(foreign_type(operation.results[0])) is None:
            return SCALARS[operator.name](*given)
        rule, schema = RULES.get(operator.name), operator.schema
        if rule is None or schema is None or schema.is_mutable:
            raise self.unsupported(operation, name, "has no rule")
        positional, keywords = arguments(schema, given)
        build = Builder(self.function.block, location(source_line(operation)))
        return rule(build, *positional, **keywords)

    def literal(self, operation: Operation, value: Any) -> SSAValue:
        """A weight; for a tensor of one element a constant, which patterns must be able to read."""
        declared = declared_tensor(foreign_type(operation.results[0]))
        if declared is None or not isinstance(value, Resource | torch.Tensor):
            raise ValueError("a tensor without a known shape and data")
        if isinstance(value, torch.Tensor):
            key, tensor = f"literal.{len(self.literals)}", value
        else:
            key = value.key
            tensor = self.literals[key] if key in self.literals else self.tensors(key, declared)
        self.literals[key] = tensor
        if tensor.dtype == torch.uint8:
            tensor = tensor.to(torch.int16)  # the IR has no unsigned integers
        build = Builder(self.function.block, location(source_line(operation)))
        kind = TensorType.of([*tensor.shape], dtype_name(tensor.dtype))
        if tensor.numel() == 1:
            return build.reshape(build.constant(tensor.item(), kind.dtype), kind.dims)
        weight = self.weights.weight(key, tensor, kind, FORWARD)
        self.used[weight["symbol"]] = self.weights.tensors[weight["symbol"]] = tensor
        return build.add(Parameter, **weight)

    def check(self, operation: Operation, name: str, result: SSAValue) -> None:
        """The result of a rule must have the type that the module declares."""
        value, declared = self.values[result], declared_tensor(foreign_type(result))
        if declared is None or name == "torch.vtensor.literal":
            return
        if not isinstance(value, SSAValue) or not declared.fits(tensor_type(value)):
            shown = value.type if isinstance(value, SSAValue) else value
            raise self.unsupported(operation, name, f"was imported as {shown}, but gives {foreign_type(result)}")

    def unsupported(self, operation: Operation, name: str, what: str) -> UnsupportedOperationError:
        return unsupported(name, source_line(operation), what)


def source_line(operation: Operation) -> SourceLine | None:
    """The innermost line of the model's source that an operation comes from, or its line in the text."""
    found = foreign_line(operation)
    return None if found is None else (PurePath(found[0]).name, found[1])
