"""Modules to text and back. The text is MLIR's: mlir tools read the generic form."""

from __future__ import annotations

import inspect
from io import StringIO

from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.ir import Dialect, Operation
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import ParseError

from forerun.errors import VerificationError
from forerun.ir import decoder, ops, structure
from forerun.ir.operation import SpecOperation
from forerun.ir.types import TensorType

OPERATIONS: list[type[Operation]] = [
    each
    for source in (structure, ops, decoder)
    for _, each in inspect.getmembers(source, inspect.isclass)
    if issubclass(each, SpecOperation) and each.__module__ == source.__name__ and hasattr(each, "name")
]

SPEC = Dialect("spec", OPERATIONS, [TensorType])


def load_dialects(context: Context) -> None:
    """Let an xDSL context know `builtin` and `spec`."""
    context.load_dialect(Builtin)
    context.load_dialect(SPEC)


def context() -> Context:
    """An xDSL context that knows `builtin` and `spec`."""
    known = Context()
    load_dialects(known)
    return known


def print_ir(operation: Operation, generic: bool = False, locations: bool = False) -> str:
    """The text of a module or an operation; `generic` is MLIR's generic form, `locations` adds source lines."""
    stream = StringIO()
    Printer(stream=stream, print_generic_format=generic, print_debuginfo=locations).print_op(operation)
    return stream.getvalue() + "\n"


def parse_ir(text: str, name: str = "<text>") -> ModuleOp:
    """The module of a text in either form. Raises VerificationError naming the line that does not parse."""
    try:
        return Parser(context(), text, name).parse_module()
    except ParseError as error:
        raise VerificationError(f"{name} is not IR of the spec dialect: {error}") from error
