"""What every importer says of `@forward(input_ids[1, T]) -> logits[1, T, V]`, and of an operation without a rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from forerun.errors import TraceError, UnsupportedOperationError
from forerun.ir import FileLineColLoc, IntAttr, LocationAttr, StringAttr

FORWARD = "forward"
SEQUENCE = "T"
"""The name of the sequence dimension in `@forward`."""
SHORTEST = 7
"""A prompt of as many tokens must be possible."""
LONGEST = 2**31
"""Where a program gives no bound, sequences are shorter than this."""

SourceLine = tuple[str, int]
"""The name of the file and the line of a model's source that an operation comes from."""


def require_counts(name: str, inputs: int, outputs: int) -> None:
    """Raises `TraceError` unless a program has one input and one output."""
    if inputs != 1 or outputs != 1:
        raise TraceError(
            f"{name} has {inputs} inputs and {outputs} outputs: "
            f"export a module that takes only input_ids and returns only the logits."
        )


def require_tokens(name: str, shape: Sequence[int | str]) -> None:
    """Raises `TraceError` unless the input's shape is [1, T]; a dynamic size is a text."""
    if len(shape) != 2 or shape[0] != 1:
        raise TraceError(f"{name} takes input_ids of shape {shown(shape)}: export it with input_ids of shape [1, T].")
    if isinstance(shape[1], int):
        raise TraceError(
            f"{name} fixes the sequence length at {shape[1]}: its forward must work for any T, "
            f"and it must be exported with a dynamic T."
        )


def require_range(name: str, least: int, most: int, max_length: int, table: str = "") -> None:
    """Raises `TraceError` unless a program is traced for short prompts and for `max_length` positions.

    table   what limits the positions, if it is known
    """
    if most < max_length:
        remedy = "" if table else ", or give a model whose code does not branch on the length"
        raise TraceError(
            f"{name} is traced for at most {most} positions{table}, fewer than max_length={max_length}: "
            f"compile with max_length={most} or less{remedy}."
        )
    if least > SHORTEST:
        raise TraceError(
            f"{name} is traced for at least {least} positions, but a prompt may be shorter: "
            f"give a model whose code does not branch on the length."
        )


def require_logits(name: str, shape: Sequence[int | str], length: str) -> None:
    """Raises `TraceError` unless the result's shape is [1, T, V]; an empty shape stands for no tensor."""
    if len(shape) != 3 or shape[0] != 1 or shape[1] != length or isinstance(shape[2], str):
        raise TraceError(
            f"{name} returns {shown(shape) if shape else 'no tensor'} for input_ids of shape [1, T]: it must return "
            f"logits [1, T, V] for all positions."
        )


def shown(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def unsupported(operation: str, line: SourceLine | None, what: str, rules: str = "aten") -> UnsupportedOperationError:
    """The error for an operation that cannot be imported, with its source line if that is known.

    rules   how the names of the files with such rules begin
    """
    return UnsupportedOperationError(
        f"The operation {operation}{at(line)} {what}; "
        f"express it through supported operations, or add a rule to a file forerun/frontends/{rules}_*.py, as "
        'CONTRIBUTING.md shows under "Add a frontend rule".'
    )


def innermost_line(trace: str) -> SourceLine | None:
    """The innermost line of the model's source in a stack trace as Python prints it, or None."""
    for line in reversed(trace.splitlines()):
        line = line.strip()
        if line.startswith('File "') and '", line ' in line:
            path, number = line.removeprefix('File "').split('", line ')
            return PurePath(path).name, int(number.split(",")[0])
    return None


def at(line: SourceLine | None) -> str:
    """Where an operation comes from, as the end of a sentence's subject; nothing if that is not known."""
    return "" if line is None else f" at {line[0]}:{line[1]}"


def location(line: SourceLine | None) -> LocationAttr | None:
    """The location of an operation in IR."""
    return None if line is None else FileLineColLoc(StringAttr(line[0]), IntAttr(line[1]), IntAttr(0))
