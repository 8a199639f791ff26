"""The text and the bytes of single tokens, which may be parts of characters."""

from __future__ import annotations

from functools import cache
from typing import Any

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a space."""


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """Returns the bytes that a token adds to a text."""
    text = tokenizer.decode([token], skip_special_tokens=False)
    piece = piece_of(tokenizer, token)
    if piece is not None:
        if UNFINISHED in text and (found := _part_of_character(piece)) is not None:
            return found
        if piece.startswith(SPACE) and not text.startswith(" "):  # decoding drops a text's first space
            return f" {text}".encode()
    return text.encode("utf-8", "replace")


def piece_of(tokenizer: Any, token: int) -> str | None:
    """Returns a token as the vocabulary has it; None if the tokenizer does not say."""
    by_id = getattr(tokenizer, "convert_ids_to_tokens", None) or getattr(tokenizer, "id_to_token", None)
    by_id = by_id or getattr(getattr(tokenizer, "tokens", None), "id_to_token", None)  # of a bundle
    found = None if by_id is None else by_id(token)
    return found if isinstance(found, str) else None


def _part_of_character(piece: str) -> bytes | None:
    """Returns the bytes of a piece of byte-level BPE, or of a byte that SentencePiece falls back to."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    table = _byte_of_letter()
    return bytes(table[letter] for letter in piece) if all(letter in table for letter in piece) else None


@cache
def _byte_of_letter() -> dict[str, int]:
    """Returns GPT-2's letters for bytes: printable bytes are themselves, the others follow from 256 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + number): byte for number, byte in enumerate(others)}
