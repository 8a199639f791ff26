"""The text of tokens, as they come."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Protocol

UNFINISHED = "\ufffd"
"""What a tokenizer writes for a character whose last bytes are in tokens to come."""


class Tokenizer(Protocol):
    """The part of transformers' and tokenizers' interface that is used."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = ...) -> Any: ...


class Spelling:
    """Turns tokens into text as they come. Decodes only the last tokens, as a text's beginning does not change."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._tokens: list[int] = []
        self._from = 0  # the first token that is decoded
        self._told = 0  # the tokens whose text has been returned

    def add(self, tokens: Sequence[int], last: bool = False) -> str:
        """Returns the text that has become certain; at the `last` tokens, all that is left."""
        self._tokens.extend(tokens)
        before, now = self._decoded(self._told), self._decoded(len(self._tokens))
        if now.endswith(UNFINISHED) and not last:
            return ""
        self._from, self._told = self._told, len(self._tokens)
        return now[len(before) :]

    def _decoded(self, end: int) -> str:
        return self.tokenizer.decode(self._tokens[self._from : end], skip_special_tokens=True)


class StoppedText:
    """A text that ends where the first of some stop strings begins.

    They are found wherever token borders are: of two that are complete, the one that was complete first counts, and of
    those the longer one.
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]) -> None:
        self.strings = tuple(strings)
        self.found: str | None = None  # the stop string that ended the text
        self._spelling = Spelling(tokenizer)
        self._text = ""  # spelled so far, without the stop string once it is found
        self._begins: list[int] = []  # the characters before each token
        self._told = 0  # characters that `news` has returned
        self._complete = False  # whether no token follows

    def add(self, token: int) -> bool:
        """Returns whether the text ends with this token."""
        known = len(self._text)
        self._begins.append(known)
        self._text += self._spelling.add([token])
        ends: list[tuple[int, int, str]] = []
        for string in self.strings:
            start = self._text.find(string, max(0, known - len(string) + 1))
            if start >= 0:
                ends.append((start + len(string), start, string))
        if not ends:
            return False
        _, start, self.found = min(ends)
        self._text, self._complete = self._text[:start], True
        return True

    def finish(self) -> None:
        """Called when no token follows."""
        if not self._complete:
            self._text += self._spelling.add([], last=True)
            self._complete = True

    @property
    def text(self) -> str:
        """The text that is certain: without an end that may be the beginning of a stop string."""
        return self._text if self._complete else self._text[: len(self._text) - held_back(self._text, self.strings)]

    @property
    def begun(self) -> int:
        """The number of tokens that begin in the text that is certain; all if it ended without a stop string."""
        if self._complete and self.found is None:
            return len(self._begins)
        return bisect_left(self._begins, len(self.text))

    def news(self) -> str:
        """Returns the text that has become certain since the last call."""
        text = self.text
        told, self._told = self._told, len(text)
        return text[told:]


def held_back(text: str, strings: Sequence[str]) -> int:
    """Returns the length of the longest end of a text that begins one of some strings, and is not all of it."""
    longest = 0
    for string in strings:
        at = text.find(string[0], max(0, len(text) - len(string) + 1))
        while at >= 0 and len(text) - at > longest:
            if string.startswith(text[at:]):
                longest = len(text) - at
            at = text.find(string[0], at + 1)
    return longest
