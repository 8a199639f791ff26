"""What the runtime asks of compiled code: one step over a batch of rows.

A `Rows` says, for each of N rows, which token it is, where it stands, where its keys and values go, and how to find its
history. A row's history is its sequence's committed positions and then its own path in the tree:

    slot(row r, position j) = block_tables[sequences[r], j // P] * P + j % P    for j <  bases[r]
                            = paths[r, j - bases[r]]                            for j >= bases[r], j <= positions[r]

The last path entry of a row is its own slot. A row whose whole history, itself included, lies in its sequence's blocks
(a prompt's rows do) has `bases[r] = positions[r] + 1` and an empty path.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """N rows of S sequences, all int32."""

    tokens: Int32  # [N]
    positions: Int32  # [N] absolute position of each row
    sequences: Int32  # [N] index into block_tables
    slots: Int32  # [N] where the row's keys and values are written
    bases: Int32  # [N] positions below this one are read through block_tables
    paths: Int32  # [N, D] slots of positions bases[r] .. positions[r], padded with 0
    block_tables: Int32  # [S, B] block b of a sequence lies at slots [table[b] * P, (table[b] + 1) * P)
    outputs: Int32  # [M] the rows whose logits are wanted


@dataclass(frozen=True)
class StepResult:
    """Row m belongs to row `outputs[m]` of the step. The arrays are valid until the next step."""

    logits: Float32  # [M, V]
    candidates: Int32  # [M, K] the K largest logits' token ids, largest first, the lower id first among equals
    candidate_logits: Float32  # [M, K]


class Executable(Protocol):
    """A compiled `@step` with its weights. `state` is the cache, opaque to the runtime."""

    block: int  # P, positions a block
    max_rows: int  # the largest N
    max_outputs: int  # the largest M
    max_path: int  # the largest D
    max_length: int  # positions a sequence may have
    vocabulary: int  # V
    candidates: int  # K

    def new_state(self, blocks: int) -> Any:
        """A cache of `blocks * P` slots."""
        ...

    def run(self, state: Any, rows: Rows) -> StepResult:
        """Write the rows' keys and values to their slots, then evaluate the target at the rows."""
        ...

    def copy_slots(self, state: Any, source: Int32, destination: Int32) -> None:
        """Copy all that is cached at each source slot to its destination; all reads happen before all writes."""
        ...
