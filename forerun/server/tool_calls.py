"""Tool calls that a text holds, in the form that most chat templates ask for: <tool_call>{json}</tool_call>."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

BEGIN, END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: str  # JSON


class ToolCallParser:
    """Separates a text that comes in pieces into contents and calls.

    What is no call, such as one with broken JSON or one that the text's end cuts off, stays text. White space around
    calls is dropped. How the text is divided into pieces changes nothing.
    """

    def __init__(self) -> None:
        self._held = ""  # white space, then a beginning of BEGIN or of a call
        self._called = False  # since the last text

    def add(self, text: str) -> Iterator[str | ToolCall]:
        """Yields what has become certain."""
        self._held += text
        while True:
            before, begin, rest = self._held.partition(BEGIN)
            if not begin:
                kept = _beginning(before)
                said, self._held = before[: len(before) - kept], before[len(before) - kept :]
                yield from self._text(said)
                return
            inside, end, after = rest.partition(END)
            if not end:
                bare = before.rstrip()
                yield from self._text(bare)
                self._held = self._held[len(bare) :]
                return
            call = parsed(inside)
            if call is None:
                yield from self._text(before + begin + inside + end)
            else:
                yield from self._text(before.rstrip())
                yield call
                self._called = True
            self._held = after

    def end(self) -> Iterator[str | ToolCall]:
        """Yields what is left."""
        held, self._held = self._held, ""
        yield from self._text(held if held.strip() or not self._called else "")

    def _text(self, text: str) -> Iterator[str]:
        if self._called:
            text = text.lstrip()
        if text:
            self._called = False
            yield text


def _beginning(text: str) -> int:
    """Returns the length of the longest end of a text that may become a call: white space, and a part of BEGIN."""
    part = next((size for size in range(len(BEGIN) - 1, 0, -1) if text.endswith(BEGIN[:size])), 0)
    bare = text[: len(text) - part]
    return part + len(bare) - len(bare.rstrip())


def parsed(inside: str) -> ToolCall | None:
    """Returns the call that a JSON object with `name` and `arguments` (or `parameters`) is; None if it is none."""
    try:
        read = json.loads(inside)
    except (ValueError, RecursionError):
        return None
    if not isinstance(read, dict):
        return None
    given = cast("dict[str, Any]", read)
    name, arguments = given.get("name"), given.get("arguments", given.get("parameters", {}))
    if not isinstance(name, str) or not name:
        return None
    try:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        (name + text).encode()  # half of a surrogate pair can be escaped, but not sent
    except (ValueError, RecursionError):
        return None
    return ToolCall(name, text)
