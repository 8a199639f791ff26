"""Text that appears while it is generated."""

from __future__ import annotations

import sys
from typing import Any

from forerun.runtime.spelling import Spelling, Tokenizer


class PrintedText:
    """A streamer (`runtime.model.Streamer`) that prints a text without its prompt.

    What is printed stays: a character is held back until all its bytes are there.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._spelling = Spelling(tokenizer)
        self._prompt = True

    def put(self, value: Any) -> None:
        if self._prompt:
            self._prompt = False
            return
        self._print(self._spelling.add([int(each) for each in value]))

    def end(self) -> None:
        self._print(self._spelling.add([], last=True) + "\n")

    def _print(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
