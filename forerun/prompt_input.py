"""Prompts as the command line gets them: an argument, a file, standard input, token ids; and what texts must be."""

from __future__ import annotations

from typing import Any

from forerun.errors import InvalidOptionError, SourceNotFoundError
from forerun.runtime.options import require_integer
from forerun.tool import read_bytes

LONGEST_PROMPT = 1 << 26
"""The most bytes of a prompt file: more than any model has positions for."""
LARGEST_TOKEN = 2**31 - 1


def token_ids(text: str) -> list[int]:
    """Returns the numbers of `--token-ids`. Raises `InvalidOptionError`."""
    try:
        given = [int(each) for each in text.split(",")]
    except ValueError as error:
        raise InvalidOptionError(f"--token-ids {text!r} is not a comma-separated list of numbers.") from error
    return [require_integer("a number of --token-ids", each, least=0, most=LARGEST_TOKEN) for each in given]


def prompt_file(file: str, what: str = "prompt file") -> str:
    """Returns the text of a prompt file or of another one, or of standard input for "-".

    Raises `SourceNotFoundError` and `InvalidOptionError`.
    """
    try:
        content = read_bytes(file, LONGEST_PROMPT)
    except OSError as error:
        raise SourceNotFoundError(f"The {what} {file!r} cannot be read ({error.strerror}); check the path.") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidOptionError(
            f"The {what} {file} is not UTF-8 text (byte {error.start}); convert it to UTF-8."
        ) from error


def prompt_text(text: str, name: str) -> str:
    """Returns a prompt that can be encoded; `name` says where it comes from. Raises `InvalidOptionError`."""
    if not text:
        raise InvalidOptionError(f"{name} is empty; give a text.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # an argument has bytes that Python could not decode
        raise InvalidOptionError(f"{name} is not UTF-8 text (character {error.start}); convert it to UTF-8.") from error
    return text


def given_grammar(schema_file: str | None, regex: str | None, grammar_file: str | None) -> Any:
    """Returns the `grammar` of `generate` that one of the options says; None without any."""
    from forerun.hooks import JsonSchema, Lark, Regex

    if schema_file is not None:
        return JsonSchema(prompt_file(schema_file, "schema file"))
    if regex is not None:
        return Regex(regex)
    return None if grammar_file is None else Lark(prompt_file(grammar_file, "grammar file"))
