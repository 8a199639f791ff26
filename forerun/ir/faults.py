"""Describes why xDSL's verifier refuses an operation, in a sentence about its names, kinds and counts."""

from __future__ import annotations

from xdsl.utils.exceptions import VerifyException

from forerun.ir.declared import SEGMENTS, DeclaredOperation
from forerun.ir.properties import attribute_text


def misfit(operation: DeclaredOperation, found: VerifyException) -> str:
    """The fault that xDSL found in the names, kinds and counts of an operation, as a sentence."""
    if wrong := wrong_parameter(operation):
        return wrong
    bodies = len(type(operation).get_irdl_definition().regions)
    if [len(each.blocks) for each in operation.regions] != [1] * bodies:
        return "does not have one block as its body" if bodies else "has a body, which it does not take"
    most, count = len(operation.OPERANDS), len(operation.operands)
    least = most - len(operation.OPTIONAL)
    if count < least - operation.VARIADIC or (count > most and not operation.VARIADIC):
        shown = ", ".join(str(value.type) for value in operation.operands)
        return f"does not take the operands ({shown}), but ({', '.join(signature(type(operation)))})"
    if not operation.SEGMENTED or (len(operation.there()) == most and sum(operation.there()) == count):
        operation.check()
    return str(found)


def wrong_parameter(operation: DeclaredOperation) -> str | None:
    """The first parameter that is missing, unknown or of another kind, as a sentence about the operation."""
    for name in operation.PARAMETERS:
        if name in operation.REQUIRED and name not in operation.properties:
            return f"needs the parameter {name!r}"
    for name, attribute in {**operation.attributes, **operation.properties}.items():
        if name == SEGMENTS and operation.SEGMENTED:
            continue
        if name in operation.attributes or name not in operation.PARAMETERS:
            return operation.unknown(name)
        if not operation.PARAMETERS[name].holds(attribute):
            what = operation.PARAMETERS[name].what
            return f"takes {what} as the parameter {name!r}, not {attribute_text(attribute)}"
    return None


def signature(kind: type[DeclaredOperation]) -> list[str]:
    """The names of the operands, `name?` if it may be left out, `name...` for any number of them."""
    names = [f"{name}?" if name in kind.OPTIONAL else name for name in kind.OPERANDS]
    return [*names[:-1], f"{names[-1]}..."] if kind.VARIADIC else names
