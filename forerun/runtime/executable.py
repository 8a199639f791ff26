"""The interface to compiled code: one step over a batch of rows.

A `Rows` gives for each of N rows its token, its position, the slot of its keys and values, and the way to its history.
A row's history is its sequence's committed positions and then its own path in the tree:

    slot(row r, position j) = block_tables[sequences[r], j // P] * P + j % P    for j <  bases[r]
                            = paths[r, j - bases[r]]                            for j >= bases[r], j <= positions[r]

The last path entry of a row is its own slot. A row whose whole history, itself included, is in its sequence's blocks
(as for a prompt's rows) has `bases[r] = positions[r] + 1` and an empty path.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError
from forerun.signature import Signature

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
Inputs = Mapping[str, NDArray[Any]]
"""The arguments of an entry other than the step, by name; int32 or float32."""


@dataclass(frozen=True)
class Rows:
    """N rows of S sequences, all int32."""

    tokens: Int32  # [N]
    positions: Int32  # [N] absolute position of each row
    sequences: Int32  # [N] index into block_tables
    slots: Int32  # [N] where the row's keys and values are written
    bases: Int32  # [N] positions below this one are read through block_tables
    paths: Int32  # [N, D] slots of positions bases[r] .. positions[r], padded with 0
    block_tables: Int32  # [S, B] block b of a sequence is at slots [table[b] * P, (table[b] + 1) * P)
    outputs: Int32  # [M] the rows whose logits are requested
    requests: Int32 = field(default_factory=lambda: np.zeros(0, np.int32))
    """[S] the slot of each sequence's state that is constant for a request; empty for models without such a state"""
    places: tuple[Int32, Int32] | None = None
    """[N] the places of the states per row: of each row's parent, negative for none, and of the row's own; None if they
    are numbered as slots are"""

    @property
    def parents(self) -> Int32:
        """[N] where the states per row of each row's parent lie; negative for none."""
        assert self.places is not None
        return self.places[0]

    @property
    def records(self) -> Int32:
        """[N] where each row leaves its states per row."""
        assert self.places is not None
        return self.places[1]

    def placed(self, block: int) -> "Rows":
        """Returns the rows with states per row numbered as slots are, unless they have places already."""
        return self if self.places is not None else replace(self, places=(self.parent_slots(block), self.slots))

    def parent_slots(self, block: int) -> Int32:
        """Returns [N] the slot of each row's parent, the position before its own in its history; -1 for none."""
        before = self.positions - 1
        last = np.maximum(before, 0)
        column = np.minimum(last // block, self.block_tables.shape[1] - 1)
        found = self.block_tables[self.sequences, column] * block + last % block
        inside = before >= self.bases
        found[inside] = self.paths[inside, (before - self.bases)[inside]]
        return np.where(before < 0, -1, found).astype(np.int32)

    @property
    def order(self) -> Int32:
        """[N] the rows, one sequence after the other, and within it parents before their children.

        Sequences must not alternate: the prompts of a step share records (`runtime.records`).
        """
        return np.lexsort((self.positions, self.sequences)).astype(np.int32)


@dataclass(frozen=True)
class Branch:
    """A residual branch of the target model: it turns the stream x into x + f(x)."""

    layer: int
    kind: str  # "attention", "feed_forward", or "layer" where both add to one x
    bytes: int  # of the weights that evaluating it reads


@dataclass(frozen=True)
class Part:
    """An entry derived from the step: the residual branches from `enter` up to `leave`, less the skipped ones.

    An omitted branch leaves the stream unchanged, and writes no keys and values. After the last one come the final norm
    and the head, for the rows whose logits are requested. A step that enters later than branch 0 is given the rows'
    stream as an earlier step left it, so that two parts give the bits of the whole.

    With `parallel` above 1, the attentions of so many consecutive layers all read the stream as it was before the
    group's first branch, and still add to it in turn (EasySpec, arXiv 2502.02493; the pass parallel-layers). Keys and
    values then differ from the whole step's too.
    """

    enter: int = 0
    leave: int | None = None  # None: up to the last
    skipped: frozenset[int] = frozenset()
    parallel: int = 1  # layers

    def branches(self, count: int) -> list[int]:
        """Returns the evaluated branches of `count`. Raises `InvalidOptionError` if the part does not fit them."""
        leave = count if self.leave is None else self.leave
        if not 0 <= self.enter <= leave <= count:
            raise InvalidOptionError(
                f"a part from branch {self.enter} to {leave} does not fit the {count} residual branches: "
                f"give 0 <= enter <= leave <= {count}"
            )
        return [branch for branch in range(self.enter, leave) if branch not in self.skipped]

    def inputs(self, branches: Sequence[tuple[int, str]]) -> dict[int, int]:
        """Returns which evaluated branches, of all with their layers and kinds, read the stream as it was before an
        earlier one, and before which. Raises `InvalidOptionError` for groups of no layers."""
        if self.parallel < 1:
            raise InvalidOptionError(
                f"a part evaluates groups of at least one layer, not of {self.parallel}, from one input: give "
                "parallel >= 1"
            )
        begins: dict[int, int] = {}
        found: dict[int, int] = {}
        for number in self.branches(len(branches)):
            layer, kind = branches[number]
            begin = begins.setdefault(layer // self.parallel, number)
            if self.parallel > 1 and begin < number and kind != "feed_forward":
                found[number] = begin
        return found

    def shared(self, count: int) -> int:
        """Returns how many of the first of `count` branches it evaluates as the whole step does.

        After the first omitted branch the values differ from the whole step's (the pass reuse-kv-cache proves both by
        structure), so a step can be entered there, and no later. Of layers that share an input, only the first branch
        is sure to be evaluated as there.
        """
        left_out = [count if self.leave is None else self.leave, *self.skipped]
        if self.parallel > 1:
            left_out.append(1)
        return 0 if self.enter else min(left_out)


WHOLE = Part()
"""The step itself."""


@dataclass(frozen=True)
class Draw:
    """How one sequence's tokens are sampled from all logits: `sampling.sample_token` without filters."""

    seed: int
    identifier: int  # of the sequence
    temperature: float


@dataclass(frozen=True)
class StepResult:
    """Row m belongs to row `outputs[m]` of the step. The arrays are valid until the next step."""

    logits: Float32  # [M, V]
    candidates: Int32  # [M, K] token ids of the K largest logits, largest first, the lower id first on ties
    candidate_logits: Float32  # [M, K] NaN counts as -inf, and is given as -inf
    hidden: Float32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """[N, D] the residual stream after the last evaluated branch; empty if the graph has no such stream."""
    drawn: Int32 = field(default_factory=lambda: np.zeros(0, np.int32))
    """[M] the token that each row samples for the next position, or -1 - t if the logit of token t is the row's first
    NaN; empty if the step sampled none."""

    def first_nan(self, row: int) -> int | None:
        """Returns the first token id whose logit is NaN in an output row; None if all are numbers."""
        if len(self.drawn):
            return nan_of(int(self.drawn[row]))
        logits = self.logits[row]
        return int(np.isnan(logits).argmax()) if np.isnan(logits.max()) else None  # max() propagates NaN


def nan_of(drawn: int) -> int | None:
    """Returns the token id of the NaN that an entry of `StepResult.drawn` stands for, or None."""
    return -1 - drawn if drawn < 0 else None


@dataclass(frozen=True)
class KernelOutput:
    """One result of one kernel of a step."""

    kernel: str
    output: str
    value: NDArray[Any]  # [N, ...] or [M, ...] for values of rows, wherever that axis is in the IR
    along: str | None
    """The leading axis: "N" for the step's rows, "M" for its outputs, None if no axis runs along them."""


@dataclass(frozen=True)
class Exchange:
    """A message at which a part of a step waits: `array` is to be sent, or to be filled with what was received."""

    payload: str
    array: NDArray[Any]
    received: bool
    peers: bool = False  # between the ranks that share the part: `array` has this rank's columns, or is to have all


R = TypeVar("R")
Running = Generator[Exchange, None, R]
"""A part of a step that runs from message to message."""


class Executable(Protocol):
    """A compiled module with its weights. `state` is what its entries store, opaque to the runtime."""

    entries: Mapping[str, Signature]  # the functions of the module that can be run; `@step` is one
    block: int  # P, positions per block
    max_rows: int  # the largest N
    max_outputs: int  # the largest M
    max_path: int  # the largest D
    max_length: int  # the most positions of a sequence
    vocabulary: int  # V
    candidates: int  # K
    branches: tuple[Branch, ...]  # of the residual stream; none if the graph has no such stream
    head_bytes: int  # of the weights that turn the stream into logits
    width: int  # D, the features of the stream; 0 if there is none
    draws: bool  # whether a step can sample tokens
    enters: bool  # whether a part of it may begin after branch 0
    slot_bytes: int  # of a slot's states; 0 if a larger state makes steps slower
    row_bytes: int  # of a row's states; 0 if the model has none

    def new_state(self, blocks: int, requests: int = 1, rows: int | None = None) -> Any:
        """Returns a state with room for `blocks * P` slots, the constants of `requests` requests, and the states of
        `rows` rows: by default of as many as there are slots."""
        ...

    @overload
    def run(
        self,
        entry: Part,
        state: Any,
        inputs: Rows,
        hidden: Float32 | None = None,
        draws: Sequence[Draw | None] | None = None,
    ) -> StepResult: ...
    @overload
    def run(self, entry: str, state: Any, inputs: Inputs) -> tuple[NDArray[Any], ...]: ...
    def run(
        self,
        entry: Part | str,
        state: Any,
        inputs: Rows | Inputs,
        hidden: Float32 | None = None,
        draws: Sequence[Draw | None] | None = None,
    ) -> StepResult | tuple[NDArray[Any], ...]:
        """Run an entry: a part of the step over rows, or another function of the module by its name.

        The step writes the rows' records to their slots. `hidden` [N, D] is the rows' stream where a part enters; it is
        given if and only if that is after branch 0. `draws` says how each sequence of the block tables samples its
        tokens, None for the likeliest one; an executable that does not sample ignores it.
        The results of another entry are valid until the next run. Raises `InvalidOptionError` if there is no such
        entry, or if the inputs are not its arguments.
        """
        ...

    def copy_slots(self, state: Any, source: Int32, destination: Int32) -> None:
        """Copy the records of each source slot to its destination; all reads happen before all writes."""
        ...
