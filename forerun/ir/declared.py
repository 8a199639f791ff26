"""The declared operands and parameters of an operation's class: the basis of its text and its error messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from xdsl.dialects.builtin import DenseArrayBase
from xdsl.irdl import AttrSizedOperandSegments, IRDLOperation

from forerun.ir.properties import Kind

SEGMENTS = AttrSizedOperandSegments.attribute_name
"""The property that says which optional operands there are, where an operation has several."""


class DeclaredOperation(IRDLOperation):
    """An operation whose class says how its operands and parameters are named (`operation.operation` fills it in)."""

    PARAMETERS: ClassVar[Mapping[str, Kind[Any]]]
    """The kinds of its parameters, by name."""
    REQUIRED: ClassVar[frozenset[str]]
    """The parameters that cannot be left out."""
    OPERANDS: ClassVar[tuple[str, ...]]
    """The names of its operands, in order."""
    OPTIONAL: ClassVar[tuple[str, ...]]
    """Those that may be left out; they are the last."""
    VARIADIC: ClassVar[bool]
    """Whether the last operand stands for any number of them."""
    SEGMENTED: ClassVar[bool]
    """Whether it has several optional operands, and `SEGMENTS` says which are there."""
    LISTED: ClassVar[bool] = True
    """Whether the text lists the names of optional operands; else they are filled in order."""

    def there(self) -> Sequence[int]:
        """The number of values for each operand, for operations with several optional ones."""
        sizes: Any = self.properties.get(SEGMENTS)
        return sizes.get_values() if isinstance(sizes, DenseArrayBase) else ()

    def extra(self) -> tuple[str, ...]:
        """The names of the optional operands that are present."""
        if self.SEGMENTED:
            there = zip(self.OPERANDS, self.there(), strict=False)
            return tuple(name for name, count in there if count and name in self.OPTIONAL)
        return self.OPTIONAL[: len(self.operands) - (len(self.OPERANDS) - len(self.OPTIONAL))]

    @classmethod
    def unknown(cls, name: str) -> str:
        known = [*cls.PARAMETERS, *cls.OPTIONAL]
        return f"has no parameter {name!r}" + (f", only {', '.join(known)}" if known else "")

    def check(self) -> None:
        """Raise `VerifyException` if the results do not follow from the operands and parameters."""
        raise NotImplementedError
