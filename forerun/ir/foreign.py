"""Modules of other dialects, read from MLIR's generic text: operations by name, with attributes as Python values.

xDSL parses them without knowing their dialects. Three things that MLIR prints are put into a form that it reads
rightly: an alias of a location may stand behind its uses; xDSL takes floating-point numbers in hexadecimal for integers
in a `dense`; and it renames the key of a resource that any text before has used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from xdsl.context import Context
from xdsl.dialects.builtin import (
    Builtin,
    DenseIntOrFPElementsAttr,
    FileLineColLoc,
    FloatAttr,
    IntegerAttr,
    IntegerType,
    ModuleOp,
    StringAttr,
    UnregisteredAttr,
    UnregisteredOp,
)
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.parser import Parser
from xdsl.utils.exceptions import ParseError, VerifyException

from forerun.ir.types import torch_dtype

_RESOURCE = "forerun.resource"
_ALIAS = re.compile(r"^(#loc\d*) = loc\((.*)\)\n?", re.MULTILINE)
_LOCATION = re.compile(r'\bloc\(((?:[^()"]|"(?:[^"\\]|\\.)*"|\([^()]*\))*)\)')
_FILE = re.compile(r'"((?:[^"\\]|\\.)*)":(\d+):(\d+)|(#loc\d*)')
_DENSE = re.compile(r'dense<([^">]*0x[^">]*)> : (tensor<(?:\d+x)*(f64|f32|f16|bf16)>)')
_NUMBER = re.compile(r"0x[0-9A-Fa-f]+|[-+]?[\d.]+(?:[eE][-+]?\d+)?")
_KEYED = re.compile(r"\bdense_resource<([^>]*)> : tensor<[^>]*>")
_CARET = re.compile(r"^\s*\^+\s*$")


@dataclass(frozen=True)
class Resource:
    """A tensor whose data lies outside the operations, under a key."""

    key: str


Plain = bool | int | float | str | torch.Tensor | Resource


def parse_foreign(text: str, name: str) -> ModuleOp:
    """The module of a text in MLIR's generic form, without resources. Raises ValueError saying what does not parse."""
    context = Context(allow_unregistered=True)
    context.load_dialect(Builtin)
    try:
        plain_text = _with_plain_numbers(_with_plain_locations(text))
        return Parser(context, _KEYED.sub(rf"#{_RESOURCE}<\1>", plain_text), name).parse_module()
    except (ParseError, VerifyException, ValueError, NotImplementedError, IndexError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and not _CARET.match(line)]
        raise ValueError(lines[-1] if lines else type(error).__name__) from error


def foreign_name(operation: Operation) -> str:
    """The name of an operation, with its dialect."""
    return operation.op_name.data if isinstance(operation, UnregisteredOp) else operation.name


def foreign_attributes(operation: Operation) -> Mapping[str, Plain]:
    """The attributes of an operation that are numbers, texts or tensors, by name."""
    named = {**operation.attributes, **operation.properties}
    found = {name: plain(each) for name, each in named.items() if name != "op_name__"}
    return {name: each for name, each in found.items() if each is not None}


def foreign_type(value: SSAValue) -> str:
    """The text of a value's type."""
    return str(value.type)


def plain(attribute: Attribute) -> Plain | None:
    """The Python value of an attribute; None for any other kind."""
    match attribute:
        case IntegerAttr():
            number = attribute.value.data
            return bool(number) if attribute.type == IntegerType(1) else number
        case FloatAttr():
            return attribute.value.data
        case StringAttr():
            return attribute.data
        case UnregisteredAttr() if attribute.attr_name.data == _RESOURCE:
            return Resource(attribute.value.data.strip('"'))
        case DenseIntOrFPElementsAttr():
            return _tensor(attribute)
        case _:
            return None


def foreign_line(operation: Operation) -> tuple[str, int] | None:
    """The innermost file and line that an operation comes from, or None."""
    location = operation.location
    return (location.filename.data, location.line.data) if isinstance(location, FileLineColLoc) else None


def _tensor(attribute: DenseIntOrFPElementsAttr[Any]) -> torch.Tensor:
    shape = attribute.get_shape()
    values = attribute.get_values() if 0 not in shape else ()
    name = str(attribute.type.element_type)
    if name == "i1":
        if not set(values) <= {0, -1}:
            raise ValueError(f"bits packed in hexadecimal as a {attribute.type}")
        values = [each != 0 for each in values]
    dtypes = {"ui8": torch.uint8, "si8": torch.int8, "si16": torch.int16, "si32": torch.int32, "si64": torch.int64}
    return torch.tensor(values, dtype=dtypes.get(name) or torch_dtype(name)).reshape(shape)


def _with_plain_locations(text: str) -> str:
    """Writes the innermost file and line in place of a location, which may be an alias or a chain of calls."""
    aliases = dict(_ALIAS.findall(text))

    def resolved(content: str) -> str:
        found = _FILE.search(content)
        if found is None:
            return "unknown"
        return resolved(aliases.get(found[0], "")) if found[1] is None else found[0]

    return _LOCATION.sub(lambda use: f"loc({resolved(use[1])})", _ALIAS.sub("", text))


def _with_plain_numbers(text: str) -> str:
    """Writes the numbers of a `dense` as bytes where some are in hexadecimal."""
    return _DENSE.sub(lambda found: f'dense<"0x{_bytes(found[1], torch_dtype(found[3]))}"> : {found[2]}', text)


def _bytes(numbers: str, dtype: torch.dtype) -> str:
    """The bytes of numbers, in hexadecimal; a number in hexadecimal is the bits of its value."""
    return "".join(
        int(each, 16).to_bytes(dtype.itemsize, "little").hex()
        if each.startswith("0x")
        else torch.tensor([float(each)], dtype=dtype).view(torch.uint8).numpy().tobytes().hex()
        for each in _NUMBER.findall(numbers)
    )
