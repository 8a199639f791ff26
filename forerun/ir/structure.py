"""The structure around operations: functions, kernels, and the symbols of weights and states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, Self, cast

import torch
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Region, SSAValue
from xdsl.irdl import region_def, traits_def, var_operand_def, var_result_def
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import IsolatedFromAbove, IsTerminator, Pure, RecursiveMemoryEffect

from forerun.dims import Dim
from forerun.ir.form import print_symbol, with_symbol
from forerun.ir.operation import SpecOperation, Types, operation, require, tensor_type
from forerun.ir.properties import (
    DIMENSIONS,
    INTEGER,
    INTEGERS,
    SYMBOL,
    TEXT,
    Symbol,
    default,
    optional,
    pair,
    parameter,
    parameter_text,
    several,
)
from forerun.ir.types import TensorType
from forerun.signature import STEP, Argument, Signature

NOT_RUN = ("constants", "forward")
"""Functions that are no entries: the derived weights, and the traced forward pass."""


class _Declaration(SpecOperation):
    """A symbol of the module: no operands, no results."""

    symbol: Symbol = parameter(SYMBOL)

    def print(self, printer: Printer) -> None:
        if rest := print_symbol(self, printer):
            printer.print_string(f" {parameter_text(rest)}")

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        symbol = parser.parse_symbol_name()
        return cls.create(properties=with_symbol(symbol, parser.parse_optional_attr_dict(), parser))


@operation
class Weight(_Declaration):
    """A tensor of the weight store: `shape`, `dtype`. With `derived`, result `derived` of `@constants` instead.

    With `source`, elements of another weight: those from part[1] up to part[2] along the axis part[0].
    `storage` is the weight dtype of a float32 matrix (`forerun.ir.storage`), by default `dtype`.
    """

    name = "spec.weight"

    shape: tuple[Dim, ...] = parameter(DIMENSIONS)
    dtype: str = parameter(TEXT)
    derived: int | None = optional(INTEGER)
    storage: str | None = optional(TEXT)
    source: str | None = optional(TEXT)
    part: tuple[int, ...] = default(INTEGERS, ())

    def part_of(self, source: torch.Tensor) -> torch.Tensor:
        """The part of the source that the weight is; of its elements, or of what they are stored as."""
        axis, begin, end = self.part
        return source.narrow(axis, begin, end - begin).contiguous()

    @property
    def type(self) -> TensorType:
        return TensorType.of(self.shape, self.dtype)

    @classmethod
    def infer(
        cls,
        *,
        symbol: Symbol,
        shape: Sequence[Dim],
        dtype: str,
        derived: int | None = None,
        storage: str | None = None,
        source: str | None = None,
        part: Sequence[int] = (),
    ) -> Types:
        TensorType.of(shape, dtype)
        require(bool(part) == (source is not None), "needs a source and a part of it, or neither")
        if part:
            fits = len(part) == 3 and 0 <= part[0] < len(shape) and shape[part[0]] == part[2] - part[1] and part[1] >= 0
            require(fits, f"has the shape {list(shape)}, which the part {list(part)} does not give")
        return []


PER = ("position", "row", "request")
"""What a state has a record for."""

LARGEST_RECORD = 2**40
"""The most numbers of a state's record."""

KINDS = ("linear", "head", "attention", "recurrence", "topk", "row_wise", "ancestors")
"""What a kernel may be."""


@operation
class State(_Declaration):
    """The data that a step leaves for later ones: records of `shape` numbers of `dtype`, one for each slot.

    per = "position"   read through a row's history: committed blocks, then the row's own path (keys and values);
    per = "row"        a row reads its parent's record, and leaves its own;
    per = "request"    constant for a request, once an entry has written it; its slots have their own numbering.
    """

    name = "spec.state"

    per: str = parameter(TEXT)
    shape: tuple[int, ...] = parameter(INTEGERS)
    dtype: str = parameter(TEXT)

    @property
    def type(self) -> TensorType:
        """The type of one record."""
        return TensorType.of(self.shape, self.dtype)

    @classmethod
    def infer(cls, *, symbol: Symbol, per: str, shape: Sequence[int], dtype: str) -> Types:
        require(per in PER, f"must have a record per position, row or request, not per {per!r}")
        require(all(size >= 1 for size in shape), f"needs record sizes of at least 1, not {list(shape)}")
        require(prod(shape) <= LARGEST_RECORD, f"needs records of at most {LARGEST_RECORD} numbers, not {list(shape)}")
        TensorType.of(shape, dtype)
        return []


@operation
class Return(SpecOperation):
    """The results of a function."""

    name = "spec.return"
    traits = traits_def(IsTerminator(), Pure())

    inputs = var_operand_def(TensorType)

    @classmethod
    def infer(cls, *inputs: TensorType) -> Types:
        return []


@operation
class Yield(SpecOperation):
    """The results of a kernel, or of the body of a recurrence."""

    name = "spec.yield"
    traits = traits_def(IsTerminator(), Pure())

    inputs = var_operand_def(TensorType)

    @classmethod
    def infer(cls, *inputs: TensorType) -> Types:
        return []


@operation
class Kernel(SpecOperation):
    """The work of one launch: a body over the operands, ended by `spec.yield`. `kind` names the template.

    `label` names it for people, in the words of the model, once in its function. `branch` is the residual branch that
    it belongs to, `stream` the number of its first result in the residual stream, `offsets` where its results lie in
    the arena, in bytes.
    """

    name = "spec.kernel"
    traits = traits_def(RecursiveMemoryEffect())

    inputs = var_operand_def(TensorType)
    outputs = var_result_def(TensorType)
    region = region_def("single_block")
    label: str | None = optional(TEXT)
    kind: str = parameter(TEXT)
    branch: int | None = optional(INTEGER)
    stream: int | None = optional(INTEGER)
    offsets: tuple[int, ...] = default(INTEGERS, ())

    @classmethod
    def of(cls, inputs: Sequence[SSAValue], body: Region, **parameters: Any) -> Self:
        last = body.block.last_op
        assert isinstance(last, Yield)
        given = {name: each for name, each in parameters.items() if each is not None}
        return cls.create(
            operands=inputs,
            result_types=[value.type for value in last.inputs],
            properties={name: cls.encoded(name, each) for name, each in given.items()},
            regions=[body],
        )

    def check(self) -> None:
        """The module verifier checks a kernel's results against its `spec.yield`, and its branch."""
        require(self.kind in KINDS, f"has no kind {self.kind!r}, only {', '.join(KINDS)}")
        marked = self.stream is None or (self.stream >= 0 and len(self.results) > 0)
        require(marked, f"needs a stream of at least 0 for its first result, not {self.stream}")
        placed = not self.offsets or (len(self.offsets) == len(self.results) and min(self.offsets) >= 0)
        require(placed, f"needs an offset of at least 0 for each result, not {list(self.offsets)}")

    @property
    def body(self) -> list[SpecOperation]:
        """Its operations, without the terminator."""
        return [each for each in operations(self.region.block) if not each.ends_body]

    @property
    def yielded(self) -> list[SSAValue]:
        last = self.region.block.last_op
        return [] if last is None else list(last.operands)


@operation
class Function(SpecOperation):
    """A function of the module: `spec.func @name(%a: type, ...) { ... spec.return(...) }`.

    `branches` are the layer and the kind of its residual branches; `arena` bytes are what its kernels' results take
    together at `max_rows` rows and `max_outputs` rows of logits.
    """

    name = "spec.func"
    traits = traits_def(IsolatedFromAbove())

    region = region_def("single_block")
    symbol: Symbol = parameter(SYMBOL)
    branches: tuple[tuple[int, str], ...] = default(
        several(pair(INTEGER, TEXT, "a layer and a kind"), "layers and kinds"), ()
    )
    arena: int | None = optional(INTEGER)
    max_rows: int | None = optional(INTEGER)
    max_outputs: int | None = optional(INTEGER)

    @classmethod
    def of(cls, name: str, arguments: Sequence[tuple[str, TensorType]]) -> Self:
        block = Block(arg_types=[each for _, each in arguments])
        for argument, (hint, _) in zip(block.args, arguments, strict=True):
            argument.name_hint = hint
        return cls.create(properties={"symbol": SYMBOL.encode(Symbol(name))}, regions=[Region(block)])

    def check(self) -> None:
        """The module verifier checks functions."""

    @property
    def block(self) -> Block:
        return self.region.block

    @property
    def body(self) -> list[SpecOperation]:
        """Its operations, including the terminator."""
        return operations(self.block)

    @property
    def returned(self) -> list[SSAValue]:
        last = self.block.last_op
        return list(last.operands) if isinstance(last, Return) else []

    def argument(self, name: str) -> SSAValue:
        """The argument of that name; KeyError if there is none."""
        for each in self.block.args:
            if each.name_hint == name:
                return each
        raise KeyError(name)

    @property
    def signature(self) -> Signature:
        """Its arguments and results, as plain data; results without a name are numbered."""
        arguments = [_argument(each, f"argument_{index}") for index, each in enumerate(self.block.args)]
        results = [_argument(each, f"result_{index}") for index, each in enumerate(self.returned)]
        return Signature(self.symbol, tuple(arguments), tuple(results))

    def print(self, printer: Printer) -> None:
        rest = print_symbol(self, printer)
        first = [block for region in self.regions for block in region.blocks][:1]  # it may be broken, and looked at
        printer.print_string("(")
        printer.print_list(
            [each for block in first for each in block.args], lambda each: _print_argument(printer, each)
        )
        printer.print_string(") ")
        if rest:
            printer.print_string(f"attributes {parameter_text(rest)} ")
        for region in self.regions:
            printer.print_region(region, print_entry_block_args=False)

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        symbol = parser.parse_symbol_name()
        arguments = parser.parse_comma_separated_list(parser.Delimiter.PAREN, lambda: parser.parse_argument())
        given = parser.parse_optional_attr_dict_with_keyword()
        properties = with_symbol(symbol, {} if given is None else given.data, parser)
        body = parser.parse_region(arguments)
        return cls.create(properties=properties, regions=[body])


def _argument(value: SSAValue, name: str) -> Argument:
    kind = tensor_type(value)
    return Argument(value.name_hint or name, tuple(kind.dims), kind.dtype)


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


def states(module: ModuleOp) -> dict[str, State]:
    """The state symbols of a module by name."""
    return {each.symbol: each for each in module.ops if isinstance(each, State)}


def entries(module: ModuleOp) -> dict[str, Function]:
    """The functions that can be compiled and run, `@step` first: all but `@constants` and `@forward` as traced."""
    found = {name: each for name, each in functions(module).items() if name not in NOT_RUN}
    return {name: found[name] for name in sorted(found, key=lambda name: name != STEP)}


def walk(body: Iterable[SpecOperation]) -> Iterable[SpecOperation]:
    """The given operations and, for kernels, the operations inside them."""
    for each in body:
        yield each
        if isinstance(each, Kernel):
            yield from each.body


def backward_slice(value: SSAValue) -> list[SpecOperation]:
    """The operations that a value is computed by, operands first."""
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
