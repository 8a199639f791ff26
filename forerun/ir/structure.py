"""What holds operations together: functions, kernels, and the symbols of weights and caches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self, cast

import torch
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Region, SSAValue
from xdsl.irdl import irdl_op_definition, traits_def
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import IsolatedFromAbove, IsTerminator

from forerun.ir.operation import (
    Environment,
    Parameters,
    SpecOperation,
    Symbol,
    Tensors,
    encode,
    parameter_text,
    require,
    tensor_type,
)
from forerun.ir.types import TensorType


class _Declaration(SpecOperation):
    """A symbol of the module: no operands, no results."""

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        return []

    @property
    def symbol(self) -> str:
        return self.parameter("symbol")

    def print(self, printer: Printer) -> None:
        printer.print_string(f" @{self.symbol}")
        if rest := {name: each for name, each in self.attributes.items() if name != "symbol"}:
            printer.print_string(f" {parameter_text(rest)}")

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        symbol = parser.parse_symbol_name()
        attributes = {"symbol": encode(Symbol(symbol.data)), **parser.parse_optional_attr_dict()}
        return cls.create(attributes=attributes)


@irdl_op_definition
class Weight(_Declaration):
    """A tensor of the weight store: `shape`, `dtype`. With `derived`, result `derived` of `@constants` instead.

    `storage` is how the numbers of a float32 matrix are kept (`forerun.ir.storage`); its dtype, where there is none.
    """

    name = "spec.weight"

    @property
    def type(self) -> TensorType:
        return TensorType.of(self.parameter("shape"), self.parameter("dtype"))

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        TensorType.of(parameters["shape"], parameters["dtype"])
        return []


@irdl_op_definition
class Cache(_Declaration):
    """The cached keys and values of one attention: `heads`, `key_dim`, `value_dim` numbers a slot."""

    name = "spec.cache"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        for name in ("heads", "key_dim", "value_dim"):
            size = parameters[name]
            require(isinstance(size, int) and size >= 1, f"{name} is 1 or more, not {size}")
        return []


@irdl_op_definition
class Return(SpecOperation):
    """The results of a function."""

    name = "spec.return"
    traits = traits_def(IsTerminator())

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        return []


@irdl_op_definition
class Yield(SpecOperation):
    """The results of a kernel."""

    name = "spec.yield"
    traits = traits_def(IsTerminator())

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        return []


@irdl_op_definition
class Kernel(SpecOperation):
    """What one launch computes: a body over the operands, closed by `spec.yield`. `kind` names the template."""

    name = "spec.kernel"

    @classmethod
    def of(cls, inputs: Sequence[SSAValue], body: Region, **parameters: Any) -> Self:
        last = body.block.last_op
        assert isinstance(last, Yield)
        return cls.raw(inputs, [tensor_type(value) for value in last.inputs], parameters, body)

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        return []

    def verify_(self) -> None:
        """The module verifier checks a kernel's results against its `spec.yield`."""

    @property
    def body(self) -> list[SpecOperation]:
        """Its operations, without the terminator."""
        return [each for each in operations(self.regions[0].block) if not each.ends_body]

    @property
    def yielded(self) -> list[SSAValue]:
        last = self.regions[0].block.last_op
        return [] if last is None else list(last.operands)


@irdl_op_definition
class Function(SpecOperation):
    """A function of the module: `spec.func @name(%a: type, ...) { ... spec.return(...) }`."""

    name = "spec.func"
    traits = traits_def(IsolatedFromAbove())

    @classmethod
    def of(cls, name: str, arguments: Sequence[tuple[str, TensorType]]) -> Self:
        block = Block(arg_types=[each for _, each in arguments])
        for argument, (hint, _) in zip(block.args, arguments, strict=True):
            argument.name_hint = hint
        return cls.raw([], [], {"symbol": Symbol(name)}, Region(block))

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        return []

    @property
    def symbol(self) -> str:
        return self.parameter("symbol")

    @property
    def block(self) -> Block:
        return self.regions[0].block

    @property
    def body(self) -> list[SpecOperation]:
        """Its operations, the terminator included."""
        return operations(self.block)

    @property
    def returned(self) -> list[SSAValue]:
        last = self.block.last_op
        return list(last.operands) if isinstance(last, Return) else []

    def argument(self, name: str) -> SSAValue:
        """The argument of that name; KeyError where there is none."""
        for each in self.block.args:
            if each.name_hint == name:
                return each
        raise KeyError(name)

    def print(self, printer: Printer) -> None:
        printer.print_string(f" @{self.symbol}(")
        printer.print_list(self.block.args, lambda argument: _print_argument(printer, argument))
        printer.print_string(") ")
        if rest := {name: each for name, each in self.attributes.items() if name != "symbol"}:
            printer.print_string(f"attributes {parameter_text(rest)} ")
        printer.print_region(self.regions[0], print_entry_block_args=False)

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        symbol = parser.parse_symbol_name()
        arguments = parser.parse_comma_separated_list(parser.Delimiter.PAREN, lambda: parser.parse_argument())
        given = parser.parse_optional_attr_dict_with_keyword()
        attributes = {"symbol": encode(Symbol(symbol.data)), **({} if given is None else given.data)}
        body = parser.parse_region(arguments)
        return cls.create(attributes=attributes, regions=[body])

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        raise NotImplementedError("forerun.ir.interpreter evaluates functions")


def _print_argument(printer: Printer, argument: SSAValue) -> None:
    """`%name: type`: xDSL's own would add a location, which its parser of arguments does not read."""
    printer.print_ssa_value(argument)
    printer.print_string(": ")
    printer.print_attribute(argument.type)


def operations(block: Block) -> list[SpecOperation]:
    """The operations of a block, in order."""
    return [cast(SpecOperation, each) for each in block.ops]


def functions(module: ModuleOp) -> dict[str, Function]:
    """The functions of a module by name."""
    return {each.symbol: each for each in module.ops if isinstance(each, Function)}


def weights(module: ModuleOp) -> dict[str, Weight]:
    """The weight symbols of a module by name."""
    return {each.symbol: each for each in module.ops if isinstance(each, Weight)}


def caches(module: ModuleOp) -> dict[str, Cache]:
    """The cache symbols of a module by name."""
    return {each.symbol: each for each in module.ops if isinstance(each, Cache)}


def walk(body: Iterable[SpecOperation]) -> Iterable[SpecOperation]:
    """Operations and, inside kernels, theirs."""
    for each in body:
        yield each
        if isinstance(each, Kernel):
            yield from each.body


def backward_slice(value: SSAValue) -> list[SpecOperation]:
    """The operations a value is made of, operands first."""
    ordered: dict[SpecOperation, None] = {}
    pending = [value.owner]
    while pending:
        operation = pending[-1]
        if not isinstance(operation, SpecOperation) or operation in ordered:
            pending.pop()
            continue
        missing = [each.owner for each in operation.operands if each.owner not in ordered]
        missing = [each for each in missing if isinstance(each, SpecOperation)]
        if missing:
            pending.extend(missing)
        else:
            ordered[operation] = None
            pending.pop()
    return list(ordered)
