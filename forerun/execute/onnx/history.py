"""From rows to the inputs of an exported step: which cached slots it reads, and what each row sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forerun.runtime.executable import Int32, Rows


@dataclass(frozen=True)
class History:
    """What a step reads besides its own rows.

    slots      the C cached slots, a range where they lie side by side
    positions  [C] int32, the position of each
    visible    [N, C + N] bool: whether a row sees a cached slot, or a row of the step
    """

    slots: slice | NDArray[np.intp]
    positions: Int32
    visible: NDArray[np.bool_]


def history(rows: Rows, block: int, slots: int) -> History:
    """Returns what rows see. `slots`: how many the cache has.

    Rows of one step may see each other, as a prompt's rows and those of a tree do; a slot that the step writes is one
    of its rows, any other is cached.
    """
    count, length = len(rows.tokens), int(rows.positions.max()) + 1
    places = np.arange(length, dtype=np.int32)
    committed = rows.block_tables[rows.sequences[:, None], np.minimum(places // block, rows.block_tables.shape[1] - 1)]
    seen = committed * block + places % block  # [N, length]
    behind = places - rows.bases[:, None]
    if rows.paths.shape[1]:
        path = np.take_along_axis(rows.paths, np.clip(behind, 0, rows.paths.shape[1] - 1), 1)
        seen = np.where(behind < 0, seen, path)
    exists = places <= rows.positions[:, None]

    row_of = np.full(slots, -1, np.int32)
    row_of[rows.slots] = np.arange(count, dtype=np.int32)
    own = row_of[seen]  # [N, length]: the row of the step in that place, or -1
    cached = exists & (own < 0)
    position_of = np.full(slots, -1, np.int32)
    position_of[seen[cached]] = np.broadcast_to(places, seen.shape)[cached]
    chosen = np.flatnonzero(position_of >= 0)
    column = np.zeros(slots, np.int32)
    column[chosen] = np.arange(len(chosen), dtype=np.int32)

    visible = np.zeros((count, len(chosen) + count), np.bool_)
    row, place = np.nonzero(cached)
    visible[row, column[seen[row, place]]] = True
    row, place = np.nonzero(exists & (own >= 0))
    visible[row, len(chosen) + own[row, place]] = True
    side_by_side = len(chosen) == 0 or chosen[-1] - chosen[0] + 1 == len(chosen)
    first = int(chosen[0]) if len(chosen) else 0
    where = slice(first, first + len(chosen)) if side_by_side else chosen
    return History(where, position_of[chosen], visible)
