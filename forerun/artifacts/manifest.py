"""What `bundle.json` says: everything about a bundle that is not a tensor or code. docs/bundle.md describes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from forerun.errors import CorruptFileError
from forerun.records import restored
from forerun.signature import STEP, Signature, StateRecord

SCHEMA = 1
"""The version of the schema; a reader refuses any other."""
MOST_POSITIONS, MOST_ROWS = 2**31 - 1, 2**16


@dataclass(frozen=True)
class ListedFile:
    """A file of the bundle: its size in bytes, and the SHA-256 of its bytes in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Model:
    """The model whose text the bundle gives."""

    name: str
    dtype: str  # the weight dtype that it was compiled with
    vocabulary: int
    eos_token_ids: tuple[int, ...]
    width: int  # features of the residual stream; 0 if there is none
    defaults: Mapping[str, Any]  # keywords of `generate` that apply by default


@dataclass(frozen=True)
class Limits:
    """How large a step may be, and how long a text."""

    max_length: int  # positions of a sequence
    max_rows: int  # N
    max_outputs: int  # M
    max_path: int  # D, rows of a tree on one path
    candidates: int  # K
    block: int  # P, positions of a block of the cache


@dataclass(frozen=True)
class Exactness:
    """What the bundle promises: the level of the contract, and the promise in a sentence."""

    level: str  # "bits" or "near-ties"
    promise: str


@dataclass(frozen=True)
class Manifest:
    """The contents of `bundle.json`.

    content     what only this format has; docs/bundle.md lists it for each format
    strategy    drafters and tree policy, as `schedule.described` writes them
    cost        the seconds of a step by its rows where it was exported (`CostModel.to_dict`), if they were measured
    provenance  what the bundle was made from, and with which versions
    files       every other file of the bundle, by its path in the folder, with / between its parts
    """

    schema: int
    format: str  # "onnx", "tvm" or "triton"
    model: Model
    limits: Limits
    entries: Mapping[str, Signature]
    states: Mapping[str, StateRecord]
    strategy: Mapping[str, Any]
    cost: Mapping[str, Any] | None
    sampling: str  # how a token is sampled, in words
    exactness: Exactness
    content: Mapping[str, Any]
    tokenizer: tuple[str, ...]  # its files
    notes: tuple[str, ...]  # what the export changed, such as weights that were expanded
    provenance: Mapping[str, str]
    files: Mapping[str, ListedFile]

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def read(text: str | bytes, where: str) -> Manifest:
        """Reads a manifest. Raises `CorruptFileError`, which refers to it as `where`."""
        try:
            given = json.loads(text)
            schema = given["schema"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptFileError(f"{where} is not the description of a bundle: export the model again.") from error
        if schema != SCHEMA:
            raise CorruptFileError(
                f"{where} has schema {schema!r}, but this version of forerun reads schema {SCHEMA}: load it with the "
                "version that wrote it, or export the model again."
            )
        try:
            found = restored(Manifest, given)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(
                f"{where} lacks part of a bundle's description ({error}): export the model again."
            ) from error
        if wrong := next(_implausible(found), None):
            raise CorruptFileError(f"{where} has {wrong}, which no export writes: export the model again.")
        return found


def _implausible(manifest: Manifest) -> Iterator[str]:
    """Names the numbers that cannot be meant."""
    for name, value in asdict(manifest.limits).items():
        if not 1 <= value <= (MOST_POSITIONS if name == "max_length" else MOST_ROWS):
            yield f"the limit {name} = {value}"
    if STEP not in manifest.entries:
        yield "no entry step"
    if not 1 <= manifest.model.vocabulary <= MOST_POSITIONS:
        yield f"a vocabulary of {manifest.model.vocabulary}"
    for name, state in manifest.states.items():
        if state.per not in ("position", "row", "request") or not all(
            0 < size < MOST_POSITIONS for size in state.shape
        ):
            yield f"the state {name} of shape {list(state.shape)} per {state.per}"
