"""Numbers of places that are not known in a trace, which takes all places: code may only ask whether there are any."""

from __future__ import annotations

from typing import NoReturn

from forerun.errors import TraceError


class Count:
    """How many places there are, or rows at them: more than none."""

    def _compared(self, other: object, with_zero: bool, with_one: bool | None = None) -> bool:
        if other == 0 and isinstance(other, int):
            return with_zero
        if other == 1 and with_one is not None:
            return with_one
        return self._refused()

    def _refused(self, *arguments: object) -> NoReturn:
        raise TraceError("The model counts the places where values are true, which cannot be traced.")

    def __eq__(self, other: object) -> bool:
        return self._compared(other, False)

    def __ne__(self, other: object) -> bool:
        return self._compared(other, True)

    def __gt__(self, other: object) -> bool:
        return self._compared(other, True)

    def __le__(self, other: object) -> bool:
        return self._compared(other, False)

    def __ge__(self, other: object) -> bool:
        return self._compared(other, True, True)

    def __lt__(self, other: object) -> bool:
        return self._compared(other, False, False)

    def __bool__(self) -> bool:
        return True

    def __index__(self) -> int:
        return self._refused()

    __int__ = __index__
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refused
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = _refused
    __hash__ = object.__hash__
