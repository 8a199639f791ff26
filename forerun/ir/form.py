"""The text of an operation: `spec.name @symbol(%operands) {parameters} -> types`, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from xdsl.dialects.builtin import ArrayAttr, DenseArrayBase, StringAttr, SymbolRefAttr, i32
from xdsl.ir import Attribute, SSAValue
from xdsl.parser import Parser
from xdsl.printer import Printer

from forerun.ir.declared import SEGMENTS, DeclaredOperation
from forerun.ir.properties import items_of, parameter_text

EXTRA = "extra"
"""What lists their names in the text instead."""

Properties = dict[str, Attribute]
Made = TypeVar("Made", bound=DeclaredOperation)


def segments(there: Sequence[bool]) -> Attribute:
    """The sizes of an operation's operands, each of them present or not."""
    return DenseArrayBase.from_list(i32, [int(each) for each in there])


def print_operation(operation: DeclaredOperation, printer: Printer) -> None:
    shown = print_symbol(operation, printer)
    printer.print_string("(")
    printer.print_list(operation.operands, printer.print_ssa_value)
    printer.print_string(")")
    if shown or operation.regions:
        printer.print_string(f" {parameter_text(shown)}")
    for region in operation.regions:
        printer.print_string(" ")
        printer.print_region(region)
    if operation.results:
        printer.print_string(" -> ")
        printer.print_list(operation.results, lambda value: printer.print_attribute(value.type))


def shown_parameters(operation: DeclaredOperation) -> Properties:
    """The contents of the braces: parameters, and the names of the optional operands that are present."""
    shown: Properties = {}
    for name, attribute in {**operation.properties, **operation.attributes}.items():
        if name != SEGMENTS:
            shown[name] = attribute
        elif operation.LISTED and (names := operation.extra()):
            shown[EXTRA] = ArrayAttr([StringAttr(each) for each in names])
    return shown


def print_symbol(operation: DeclaredOperation, printer: Printer) -> Properties:
    """Print ` @symbol`, and return the other contents of the braces."""
    shown = shown_parameters(operation)
    symbol = shown.get("symbol")
    if isinstance(symbol, SymbolRefAttr):
        printer.print_string(" ")
        printer.print_symbol_name(symbol.root_reference.data)
        del shown["symbol"]
    return shown


def with_symbol(symbol: StringAttr | None, given: Mapping[str, Attribute], parser: Parser) -> Properties:
    """The contents of the braces and the symbol in front of them."""
    if symbol is None:
        return {**given}
    if "symbol" in given:
        parser.raise_error(f"the symbol @{symbol.data} is given twice; leave it out of the braces")
    return {"symbol": SymbolRefAttr(symbol.data), **given}


def parse_operation(kind: type[Made], parser: Parser) -> Made:
    symbol = parser.parse_optional_symbol_name()
    operands = parser.parse_comma_separated_list(parser.Delimiter.PAREN, lambda: _parse_defined(parser))
    properties = with_symbol(symbol, parser.parse_optional_attr_dict(), parser)
    if kind.SEGMENTED:
        operands, properties = _segmented(kind, parser, operands, properties)
    regions = [] if (body := parser.parse_optional_region()) is None else [body]
    types = (
        parser.parse_comma_separated_list(parser.Delimiter.NONE, parser.parse_type)
        if parser.parse_optional_punctuation("->") is not None
        else []
    )
    return kind.create(operands=operands, result_types=types, properties=properties, regions=regions)


def _parse_defined(parser: Parser) -> SSAValue:
    """An operand, without its type: its definition precedes it."""
    operand = parser.parse_unresolved_operand()
    values = parser.ssa_values.get(operand.operand_name, ())
    if operand.index >= len(values):
        parser.raise_error(f"%{operand.operand_name} is used before its definition", operand.span)
    return values[operand.index]


def _segmented(
    kind: type[DeclaredOperation], parser: Parser, operands: list[SSAValue], properties: Properties
) -> tuple[list[SSAValue], Properties]:
    """Operands in the declared order, and properties with `SEGMENTS` instead of the text's list of names."""
    fixed = len(kind.OPERANDS) - len(kind.OPTIONAL)
    given = operands[fixed:]
    names = _listed(properties.get(EXTRA)) if kind.LISTED else list(kind.OPTIONAL[: len(given)])
    wrong = [name for name in names if name not in kind.OPTIONAL]
    if wrong:
        parser.raise_error(f"{kind.name} has no extra operand {wrong[0]!r}, only {', '.join(kind.OPTIONAL)}")
    if len(set(names)) != len(names) or len(names) != len(given):
        parser.raise_error(f"{kind.name} lists the extra operands {names}, but {len(given)} are given")
    extra = dict(zip(names, given, strict=True))
    sizes = segments([True] * len(operands[:fixed]) + [name in extra for name in kind.OPTIONAL])
    renamed = {SEGMENTS if kind.LISTED and name == EXTRA else name: each for name, each in properties.items()}
    return operands[:fixed] + [extra[name] for name in kind.OPTIONAL if name in extra], {**renamed, SEGMENTS: sizes}


def _listed(attribute: Attribute | None) -> list[str]:
    items = () if attribute is None else items_of(attribute)
    return [each.data if isinstance(each, StringAttr) else str(each) for each in items]
