"""Running an entry by name: the half of an executable that all back ends share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from forerun.dims import bind
from forerun.errors import InvalidOptionError, TooLongError
from forerun.runtime.executable import Draw, Float32, Inputs, Part, Rows, StepResult
from forerun.runtime.options import require_integer
from forerun.signature import STEP, Argument, Signature


class EntryState:
    """A back end's state, and what the checks of a run need to know about it."""

    owner: object = None  # the executable that made it
    room: Mapping[str, int] = MappingProxyType({})  # how many records an argument can index, by its name
    rows_at_slots = False  # whether states per row are numbered as slots are, and move with them


S = TypeVar("S", bound=EntryState)


class EntryRunner(ABC, Generic[S]):
    """Checks an entry's inputs and its state before a back end sees them. `S` is the back end's state."""

    entries: Mapping[str, Signature]
    block: int
    max_length: int
    enters = True
    slot_bytes = 0
    row_bytes = 0

    def new_state(self, blocks: int, requests: int = 1, rows: int | None = None) -> S:
        """Returns a zeroed state with room for `blocks * P` slots, `requests` requests and the states of `rows` rows.

        Raises `InvalidOptionError`, and `DeviceMemoryError` if there is not enough memory.
        """
        blocks, requests = require_integer("blocks", blocks, least=1), require_integer("requests", requests, least=1)
        at_slots = rows is None
        rows = blocks * self.block if rows is None else require_integer("rows", rows, least=1)
        state = self.make_state(blocks, requests, rows if self.row_bytes else 1)
        state.rows_at_slots = at_slots and self.row_bytes > 0
        state.owner, state.room = self, {"slots": blocks * self.block, "requests": requests}
        return state

    @overload
    def run(
        self,
        entry: Part,
        state: S,
        inputs: Rows,
        hidden: Float32 | None = None,
        draws: Sequence[Draw | None] | None = None,
    ) -> StepResult: ...
    @overload
    def run(self, entry: str, state: S, inputs: Inputs) -> tuple[NDArray[Any], ...]: ...
    def run(
        self,
        entry: Part | str,
        state: S,
        inputs: Rows | Inputs,
        hidden: Float32 | None = None,
        draws: Sequence[Draw | None] | None = None,
    ) -> StepResult | tuple[NDArray[Any], ...]:
        """Runs a part of the step, or another entry (`runtime.executable.Executable.run`).

        Raises `TooLongError` if a named dimension of another entry exceeds `max_length`.
        """
        self._check_state(state)
        if isinstance(entry, Part):
            self._check_rows(inputs)
            return self.run_part(entry, state, self.placed(cast(Rows, inputs)), hidden, draws)
        given, sizes = self._bound(entry, inputs, state)  # which checks that the entry is a name
        return self.run_entry(entry, state, given, sizes)

    def placed(self, rows: Rows) -> Rows:
        """Returns the rows with the places of their states per row, if the step has any."""
        return rows.placed(self.block) if self.row_bytes else rows

    @abstractmethod
    def make_state(self, blocks: int, requests: int, rows: int) -> S:
        """Returns a zeroed state, as `new_state` does."""

    @abstractmethod
    def run_part(
        self,
        part: Part,
        state: S,
        rows: Rows,
        hidden: Float32 | None,
        draws: Sequence[Draw | None] | None,
    ) -> StepResult:
        """Runs a part of the step on rows."""

    @abstractmethod
    def run_entry(
        self, name: str, state: S, given: Sequence[NDArray[Any]], sizes: Mapping[str, int]
    ) -> tuple[NDArray[Any], ...]:
        """Runs another entry on its arguments in order, int32 and float32; `sizes` gives its dimensions' sizes."""

    def _check_state(self, state: object) -> None:
        if getattr(state, "owner", None) is not self:
            given = "that of another one" if isinstance(state, EntryState) else type(state).__name__
            raise InvalidOptionError(
                f"an executable runs on a state of its own, not {given}: give one that its new_state has returned"
            )

    # --- the step

    @cached_property
    def _step_dims(self) -> dict[str, tuple[int | str, ...]]:
        """The dimensions of the step's arguments, by their names."""
        return {each.name: each.dims for each in self.entries[STEP].arguments}

    def _check_rows(self, rows: object) -> None:
        """Raises `InvalidOptionError` unless the step's arguments are rows whose arrays fit each other."""
        if not isinstance(rows, Rows):
            raise InvalidOptionError(
                f"a part of the step runs on Rows, not {type(rows).__name__}: give other inputs to an entry by its name"
            )
        of_rows, of_sequences = np.shape(rows.tokens), np.shape(rows.block_tables)[:1]
        fits = (  # the same as below, but in microseconds
            len(of_rows) == len(of_sequences) == len(np.shape(rows.outputs)) == 1
            and of_rows == np.shape(rows.positions) == np.shape(rows.sequences) == np.shape(rows.slots)
            and of_rows == np.shape(rows.bases) == np.shape(rows.paths)[:1]
            and np.ndim(rows.paths) == np.ndim(rows.block_tables) == 2
            and ("requests" not in self._step_dims or of_sequences == np.shape(rows.requests))
        )
        if fits:
            return
        bindings: dict[str, int] = {}
        for name, given in vars(rows).items():
            if name in self._step_dims:
                _bind(f"a step takes {name}", self._step_dims[name], np.shape(given), bindings)

    # --- other entries

    def _bound(self, entry: object, inputs: object, state: S) -> tuple[list[NDArray[Any]], dict[str, int]]:
        """Returns an entry's arguments in order, int32 and float32, and the sizes of its named dimensions.

        Raises `InvalidOptionError` if there is no such entry, or if the inputs are not its arguments, and
        `TooLongError`.
        """
        if not isinstance(entry, str) or entry not in self.entries or entry == STEP:
            others = ", ".join(name for name in self.entries if name != STEP) or "none"
            raise InvalidOptionError(f"there is no entry {entry!r} besides the step: this model has {others}")
        arguments = self.entries[entry].arguments
        names = [each.name for each in arguments]
        if not isinstance(inputs, Mapping):
            raise InvalidOptionError(
                f"@{entry} takes {', '.join(names)}, but got {type(inputs).__name__}: give a dictionary by name"
            )
        named = cast("Mapping[object, Any]", inputs)
        if set(names) != set(named):
            given = ", ".join(map(str, named)) or "none"
            raise InvalidOptionError(f"@{entry} takes {', '.join(names)}, but got {given}: give exactly what it takes")
        bindings: dict[str, int] = {}
        found = [_converted(f"@{entry} takes {each.name}", each, named[each.name], bindings) for each in arguments]
        for name, size in bindings.items():
            if size < 1:
                raise InvalidOptionError(f"@{entry} with {name} = {size} has nothing to read: give at least 1")
            if size > self.max_length:
                raise TooLongError(
                    f"@{entry} with {name} = {size} exceeds max_length {self.max_length}: give a shorter input."
                )
        for each, value in zip(arguments, found, strict=True):
            room = state.room.get(each.name)
            if room is not None and len(outside := value[(value < 0) | (value >= room)]):
                raise InvalidOptionError(
                    f"{each.name} must be from 0 to {room - 1}, not {outside[0]}: give places that the state has, or "
                    "make a state with more"
                )
        return found, bindings


def _converted(takes: str, argument: Argument, given: Any, bindings: dict[str, int]) -> NDArray[Any]:
    """Returns an argument as int32 or float32, once its values and its shape, which `bindings` records, are checked.

    Raises `InvalidOptionError` with a sentence that begins with `takes`.
    """
    kind = np.dtype(np.float32 if argument.dtype == "f32" else np.int32)
    try:
        value = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidOptionError(
            f"{takes} as {kind} {_text(argument.dims)}, and {type(given).__name__} is no such array: convert it"
        ) from error
    if not np.can_cast(value.dtype, kind, "same_kind"):
        raise InvalidOptionError(f"{takes} as {kind}, not {value.dtype}: convert it")
    _bind(takes, argument.dims, value.shape, bindings)
    with np.errstate(over="ignore"):
        converted = value.astype(kind, order="C")
    lost = converted != value if kind == np.int32 else np.isinf(converted) & ~np.isinf(value)
    if lost.any():
        raise InvalidOptionError(f"{takes} as {kind}, which cannot hold {value[lost][0]}: give smaller numbers")
    return converted


def _bind(takes: str, dims: Sequence[int | str], shape: Sequence[int], bindings: dict[str, int]) -> None:
    """Reads the sizes of names from an argument's shape; raises `InvalidOptionError` if it does not fit."""
    why = ""
    try:
        if len(dims) == len(shape):
            bind(dims, shape, bindings)
            return
    except ValueError as error:
        why = f" ({error})"
    raise InvalidOptionError(f"{takes} {_text(dims)}, not {_text(shape)}{why}: give that shape")


def _text(dims: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, dims))}]"
