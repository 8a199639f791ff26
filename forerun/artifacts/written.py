"""What a back end's writer of bundles is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forerun.artifacts.manifest import Limits
from forerun.codegen.program import Program
from forerun.progress import Progress
from forerun.signature import Signature, StateRecord


@dataclass(frozen=True)
class Exportable:
    """A compiled model that is being exported."""

    executable: Any  # of the back end, if the model runs on it; else None
    program: Callable[[], Any]  # generates the back end's program from the source anew
    progress: Progress
    mcpu: str | None = None  # another processor than this machine's, by LLVM's name
    mtriple: str | None = None  # another system, by LLVM's triple
    eos_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Written:
    """The part of a bundle's description that the writer knows; its files lie in the folder already."""

    entries: Mapping[str, Signature]
    states: Mapping[str, StateRecord]
    limits: Limits
    vocabulary: int
    width: int = 0
    content: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(step: Program, content: Mapping[str, Any], notes: Sequence[str] = ()) -> Written:
        """Returns what a bundle says of a program."""
        return Written(
            entries=step.signatures,
            states={name: StateRecord(each.per, each.shape, each.element) for name, each in step.states.items()},
            limits=limits_of(step),
            vocabulary=step.vocabulary,
            width=step.width,
            content=content,
            notes=tuple(notes),
        )


def limits_of(step: Program) -> Limits:
    return Limits(step.max_length, step.max_rows, step.max_outputs, step.max_path, step.candidates, step.block)
