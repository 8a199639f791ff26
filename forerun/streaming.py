"""Text that appears while it is generated."""

from __future__ import annotations

import sys
from typing import Any

from forerun.runtime.model import Tokenizer

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer gives for a character of which a part is still to come."""


class PrintedText:
    """A streamer (`runtime.model.Streamer`) that prints a text without its prompt.

    What is printed stays: a character is held back until all its bytes are there.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._tokens: list[int] = []
        self._printed = 0
        self._prompt = True

    def put(self, value: Any) -> None:
        if self._prompt:
            self._prompt = False
            return
        self._tokens.extend(int(each) for each in value)
        self._print(self._text().rstrip(INCOMPLETE))

    def end(self) -> None:
        self._print(self._text() + "\n")

    def _text(self) -> str:
        return self.tokenizer.decode(self._tokens, skip_special_tokens=True)

    def _print(self, text: str) -> None:
        sys.stdout.write(text[self._printed :])
        sys.stdout.flush()
        self._printed = max(self._printed, len(text))
