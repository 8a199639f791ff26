"""How the records of states lie in memory, and how a row's are written.

The states per position and per row of a module share one record of numbers for each block of P slots, state after
state. Keys lie as [*shape, P] (P keys side by side: scores need no sum across lanes), any other state as [*lead, P,
last], the last axis in whole vectors. States per request have a buffer of their own, where a block is one request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from forerun import ir
from forerun.codegen.tvm.builder import Buffer, Expr, integer, let, number, store
from forerun.codegen.tvm.expressions import Expressions, Index
from forerun.codegen.tvm.target import LANES
from forerun.codegen.tvm.untyped import tirx


def padded(size: int) -> int:
    """Whole vectors."""
    return -(-size // LANES) * LANES


@dataclass(frozen=True)
class Form:
    """How the records of one state lie in a block of `block` slots; `side_by_side`: a number of all slots together."""

    shape: tuple[int, ...]
    block: int
    side_by_side: bool
    region: str  # of the kernels' signature

    @property
    def lead(self) -> tuple[int, ...]:
        return self.shape[:-1]

    @property
    def last(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def width(self) -> int:
        """Numbers that the last axis takes."""
        return self.last if self.side_by_side else padded(self.last)

    @property
    def words(self) -> int:
        """Numbers of a block."""
        return prod(self.lead) * self.block * self.width


@dataclass(frozen=True)
class Records:
    """The records of a state: `slot` holds its offset inside a block's record, `record` the numbers of a whole one."""

    form: Form
    slot: int
    record: int

    def place(self, index: Sequence[Expr], lane: Expr) -> Expr:
        """Returns the place of a number of slot `lane` in a block, relative to the state's offset."""
        form = self.form
        *lead, last = index or (integer(0),)
        at: Expr = integer(0) if not lead else lead[0]
        for size, each in zip(form.lead[1:], lead[1:], strict=True):
            at = at * integer(size) + each
        if form.side_by_side:
            return (at * integer(form.last) + last) * integer(form.block) + lane
        return (at * integer(form.block) + lane) * integer(form.width) + last

    def origin(self, context: Expressions, block: Expr) -> Expr:
        """Returns the offset at which the state's records of a block begin, int64."""
        return block.astype("int64") * context.frame.slot(self.record) + context.frame.slot(self.slot)

    def window(self, context: Expressions, block: Expr) -> Buffer:
        """The state's records of one block."""
        return context.frame.window(self.form.region, self.origin(context, block))

    def home(self, slot: Expr) -> tuple[Expr, Expr]:
        """The block of a slot, and its lane there."""
        block = integer(self.form.block)
        return let(tirx.truncdiv(slot, block)), let(tirx.truncmod(slot, block))


@dataclass(frozen=True)
class Layer:
    """The keys [Hkv, D] and the values [Hkv, Dv] that an attention reads."""

    keys: Records
    values: Records

    @property
    def heads(self) -> int:
        return self.keys.form.shape[0]

    @property
    def key_dim(self) -> int:
        return self.keys.form.shape[1]

    @property
    def value_dim(self) -> int:
        return self.values.form.shape[1]

    @property
    def block(self) -> int:
        return self.keys.form.block

    def key_place(self, head: Expr, dim: Expr, lane: Expr) -> Expr:
        return self.keys.place([head, dim], lane)

    def value_place(self, head: Expr, lane: Expr, dim: Expr) -> Expr:
        return self.values.place([head, dim], lane)


def each_number(context: Expressions, form: Form, body: Callable[[list[Expr], bool], None]) -> None:
    """Call `body` with every index of a record, and with those of the numbers that only fill up a vector."""

    def within(lead: Sequence[int], index: list[Index]) -> None:
        if lead:
            with context.frame.serial(0, lead[0]) as at:
                within(lead[1:], [*index, at])
            return
        with context.frame.serial(0, form.last) as at:
            body([*index, at] if form.shape else [], False)
        for spare in range(form.last, form.width):
            body([*index, integer(spare)], True)

    within(form.lead, [])


def emit_write(context: Expressions, records: Records, operation: ir.StateWrite, row: Expr | None) -> None:
    """Write one row's record to its slot."""
    at = integer(0) if row is None else row
    block, lane = records.home(let(context.element(operation.slots, [at])))
    window = records.window(context, block)

    def write(index: list[Expr], spare: bool) -> None:
        value = number(0.0) if spare else context.element(operation.value, [at, *index])
        store(window, value, records.place(index, lane), 1)

    each_number(context, records.form, write)
