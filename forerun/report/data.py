"""What a report is: plain data, written down as JSON and read back."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from forerun.errors import CorruptFileError, SourceNotFoundError
from forerun.records import restored

KIND = "forerun report"
VERSION = 1
"""Of the data's form: a report of another one is refused."""


@dataclass(frozen=True)
class About:
    """What was compiled, how, where and by what."""

    model: str
    target: str
    dtype: str
    strategy: str
    max_length: int
    machine: str
    forerun: str
    created: str  # ISO 8601
    compile_seconds: float


@dataclass(frozen=True)
class PassStep:
    """One pass of the pipeline; the first one is the import.

    text    the module after it with layers that are alike written once; None if the pass changed nothing
    size    characters of the whole text
    """

    name: str
    seconds: float
    before: int  # operations
    after: int
    notes: tuple[str, ...]
    text: str | None
    size: int


@dataclass(frozen=True)
class Code:
    """A text of code, of which only the beginning may be here: the whole has `size` characters."""

    name: str
    text: str
    size: int


@dataclass(frozen=True)
class Work:
    """What a kernel does in a step of `rows` rows."""

    rows: int
    weight_bytes: int  # of its matrices, each read once; of experts those of the chosen, at most
    value_bytes: int  # of its inputs and results, and of the states that it reads
    operations: int  # of products and attentions; a multiplication and its addition are two
    least: tuple[float, float] | None  # seconds of reading and of computing at the machine's peaks, if measured


@dataclass(frozen=True)
class Resource:
    """What a launch takes of a GPU, as its compiler says."""

    kernel: str
    capability: str
    config: str
    registers: int
    shared: int  # bytes
    stack: int  # bytes


@dataclass(frozen=True)
class Structure:
    """Kernels that run the same code on different weights."""

    label: str  # of the first such kernel
    kind: str
    ir: str  # of the first such kernel
    nests: tuple[Code, ...]
    sources: tuple[Code, ...]
    work: tuple[Work, ...]
    resources: tuple[Resource, ...]


@dataclass(frozen=True)
class KernelBox:
    """A kernel of the step."""

    name: str
    label: str  # the name that it shares with those of other layers
    structure: int  # its place among the structures
    seconds: tuple[float, ...]  # at each number of rows; none if it was not timed


@dataclass(frozen=True)
class Part:
    """A residual branch of consecutive layers, or kernels outside branches.

    kernels     at each place of a layer, the kernels of all layers there, by their places in the step
    """

    name: str
    kernels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Consecutive layers of the same structures, or kernels outside layers."""

    title: str
    layers: int  # how many; 0 outside layers
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class StepBoxes:
    """The step: its kernels in order, and the boxes that they lie in."""

    rows: tuple[int, ...]  # the sizes of the timed steps
    context: int  # positions in the cache
    kernels: tuple[KernelBox, ...]
    structures: tuple[Structure, ...]
    groups: tuple[Group, ...]
    others: tuple[tuple[str, int], ...]  # other entries, and how many kernels they have
    dump: str  # the command that writes the whole texts


@dataclass(frozen=True)
class Roofs:
    """What the machine can do, as measured: bytes read and operations per second."""

    bandwidth: float
    operations: float
    how: str  # a sentence


@dataclass(frozen=True)
class Cost:
    """t(n): the seconds of a step by its rows."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Memory:
    """Something that takes memory."""

    name: str
    bytes: int
    note: str


@dataclass(frozen=True)
class ReplayStep:
    """One iteration: the evaluated tree by rows, the root first, and what came of it. Times are in seconds."""

    began: float  # since the first one began
    ended: float
    phases: tuple[float, float, float, float]  # draft, step, verify, commit
    tokens: tuple[int, ...]  # [n] of the tree
    parents: tuple[int, ...]  # [n]
    probabilities: tuple[float, ...]  # [n] of each row, given its parent
    proposers: tuple[int, ...]  # [n] places among `Replay.proposers`; -1 for the root
    path: tuple[int, ...]  # the accepted rows
    committed: tuple[int, ...]  # the tokens
    text: str  # by which the text grew


@dataclass(frozen=True)
class Plain:
    """The beginning of the same text by plain decoding."""

    tokens: int
    tokens_per_second: float
    same: bool  # whether its tokens are those of the recorded generation


@dataclass(frozen=True)
class Replay:
    """A recorded generation."""

    prompt: str
    proposers: tuple[str, ...]
    vocabulary: tuple[tuple[int, str], ...]  # of the tokens that occur
    steps: tuple[ReplayStep, ...]
    token_ids: tuple[int, ...]
    text: str
    prefill_seconds: float
    decode_seconds: float
    accepted_length: float
    tokens_per_second: float
    phases: tuple[float, float, float, float]
    lengths: tuple[tuple[int, int], ...]  # accepted length, steps
    tokens_by: tuple[tuple[str, int], ...]  # who proposed them
    plain: Plain | None  # None if the strategy itself is plain decoding


@dataclass(frozen=True)
class Report:
    """All of it; what was not measured is None."""

    kind: str
    version: int
    about: About
    passes: tuple[PassStep, ...]
    step: StepBoxes | None
    roofs: Roofs | None
    cost: Cost | None
    memory: tuple[Memory, ...]
    replay: Replay | None
    notes: tuple[str, ...]

    def text(self) -> str:
        """The report as JSON, which has no NaN and no infinity: these are 0."""
        return json.dumps(_finite(asdict(self)), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _finite(data: Any) -> Any:
    """The data with 0 for every number that is not finite."""
    if isinstance(data, dict):
        return {name: _finite(each) for name, each in cast("dict[str, Any]", data).items()}
    if isinstance(data, list | tuple):
        return [_finite(each) for each in cast("list[Any]", data)]
    return 0.0 if isinstance(data, float) and not math.isfinite(data) else data


def read_report(path: Path) -> Report:
    """Reads a report from JSON. Raises `SourceNotFoundError` or `CorruptFileError`."""
    remedy = "forerun report MODEL writes one next to its page"
    try:
        given: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceNotFoundError(f"The report {str(path)!r} cannot be read ({error.strerror}); {remedy}.") from error
    except ValueError as error:
        raise CorruptFileError(f"{path} is not JSON ({error}); {remedy}.") from error
    read = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    if read.get("kind") != KIND:
        raise CorruptFileError(f"{path} is not the data of a report; {remedy}.")
    if read.get("version") != VERSION:
        raise CorruptFileError(
            f"{path} is a report of version {read.get('version')}, but this forerun reads version {VERSION}; {remedy}."
        )
    try:
        return restored(Report, read)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path} is damaged ({error}); {remedy}.") from error
