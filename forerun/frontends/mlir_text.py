"""The text of an MLIR module: its operations, and the tensors that lie outside them as resources.

The generic form is read without any MLIR library. The short form of the torch dialect, which torch-mlir prints by
default, is put into the generic form by torch-mlir.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from forerun.errors import CorruptFileError, NotAModelError, first_sentence
from forerun.ir import ModuleOp, parse_foreign

RESOURCES = "{-#"
"""Where the resources of a text begin, after all operations."""
ALIGNMENT = 4
"""The bytes in front of a resource that say how it is aligned."""
READABLE = {"torch", "func", "builtin"}
"""The dialects of a module in the torch dialect."""

_DIALECT = re.compile(r'^[ \t]*(?:%[^=\n]*= )?"?([A-Za-z_]\w*)\.\w', re.MULTILINE)
_RESOURCE = re.compile(r'(?:"((?:[^"\\]|\\.)*)"|([\w.$-]+)): "0x([0-9A-Fa-f]*)"')
_GENERIC = re.compile(r'^[ \t]*"builtin\.module"', re.MULTILINE)


@dataclass(frozen=True)
class MlirModule:
    """A module of the torch dialect: its operations, and the bytes of its resources by key."""

    name: str
    operations: ModuleOp
    resources: Mapping[str, bytes]


def read_module(text: str, name: str) -> MlirModule:
    """Reads the text of a module in the torch dialect, in either form.

    Raises `CorruptFileError` for a text that does not parse, `NotAModelError` for another dialect, or for the short
    form where torch-mlir is not installed.
    """
    operations, _, resources = text.partition(RESOURCES)
    if resources and "#-}" not in resources:
        raise CorruptFileError(f"{name} ends within its resources: write or download it again.")
    require_torch_dialect(operations, name)
    if not _GENERIC.search(operations):
        operations = _generic_form(operations, name)
    try:
        module = parse_foreign(operations, name)
    except ValueError as error:
        raise CorruptFileError(_does_not_parse(name, str(error))) from error
    return MlirModule(name, module, _blobs(resources, name))


def read_object(module: Any, name: str) -> MlirModule:
    """Reads a module object of torch-mlir; see `read_module`."""
    text = module.operation.get_asm(print_generic_op_form=True, enable_debug_info=True)
    return read_module(text, name)


def is_module_object(source: Any) -> bool:
    """Whether an object is a module of MLIR's Python bindings, which torch-mlir returns."""
    return hasattr(getattr(source, "operation", None), "get_asm")


def require_torch_dialect(text: str, name: str) -> None:
    """Raises `NotAModelError` if a text has operations of another dialect, or none at all."""
    found = dict.fromkeys(_DIALECT.findall(text))
    others = [each for each in found if each not in READABLE]
    if not others and "torch" in found:
        return
    if not found:
        raise NotAModelError(f"{name} holds no operations of MLIR: give a module in the torch dialect.")
    lowered = [each for each in ("linalg", "tosa", "stablehlo") if each in others] or others or ["func"]
    raise NotAModelError(
        f"{name} is in the {lowered[0]} dialect, in which a model's operations are lost: export the torch dialect, by "
        "torch_mlir.fx.export_and_import(..., output_type='torch')."
    )


def _generic_form(text: str, name: str) -> str:
    try:
        ir: Any = import_module("torch_mlir.ir")
        dialect: Any = import_module("torch_mlir.dialects.torch")
    except ImportError as error:
        raise NotAModelError(
            f"{name} is in the short form of the torch dialect, which torch-mlir reads: run pip install "
            "'forerun[torch-mlir]', or write the generic form, by get_asm(print_generic_op_form=True)."
        ) from error
    with ir.Context() as context:  # a new one, since keys of resources are renamed if the context knows them
        dialect.register_dialect(context)
        try:
            module = ir.Module.parse(text, context)
        except (ir.MLIRError, ValueError) as error:
            raise CorruptFileError(_does_not_parse(name, _first_fault(error))) from error
        generic = module.operation.get_asm(print_generic_op_form=True, enable_debug_info=True)
    return generic.partition(RESOURCES)[0].replace('loc("-":', f'loc("{name}":')


def _first_fault(error: Exception) -> str:
    """What MLIR says first, with its line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = next((line for line in lines if '"-":' in line), first_sentence(error))
    return re.sub(r'.*"-":(\d+):\d+: ', r"line \1: ", found)


def _does_not_parse(name: str, why: str) -> str:
    return f"{name} cannot be parsed as MLIR ({why.rstrip('.')}): write or download it again."


def _blobs(text: str, name: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for quoted, key, digits in _RESOURCE.findall(text):
        if len(digits) % 2 or len(digits) < 2 * ALIGNMENT:
            raise CorruptFileError(f"{name} has a damaged resource {quoted or key}: write or download it again.")
        found[quoted or key] = bytes.fromhex(digits[2 * ALIGNMENT :])
    return found
