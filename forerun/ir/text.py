"""Modules to text and back. The text is MLIR's: mlir tools read the generic form."""

from __future__ import annotations

import re
from io import StringIO

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import ParseError, VerifyException

from forerun.errors import VerificationError
from forerun.ir.dialect import context

UNKNOWN = re.compile(r" loc\(unknown\)$", re.MULTILINE)


def print_ir(operation: Operation, generic: bool = False, locations: bool = False) -> str:
    """The text of a module or an operation; `generic` is MLIR's generic form, `locations` adds known source lines."""
    stream = StringIO()
    Printer(stream=stream, print_generic_format=generic, print_debuginfo=locations).print_op(operation)
    return UNKNOWN.sub("", stream.getvalue()) + "\n"


def parse_ir(text: str, name: str = "<text>") -> ModuleOp:
    """The module of a text in either form. Raises VerificationError naming the line that does not parse."""
    parser = Parser(context(), text, name)
    try:
        try:
            return parser.parse_module()
        except (VerifyException, ValueError) as error:  # a number or a type that cannot be made
            parser.raise_error(str(error))
    except ParseError as error:
        raise VerificationError(f"{name} is not IR of the spec dialect: {error}") from error
