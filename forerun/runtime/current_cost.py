"""t(n) as it is now: the calibrated times, corrected by the steps that have run since."""

from dataclasses import dataclass, field

import numpy as np

from forerun.runtime.calibration import CostModel
from forerun.runtime.fields import Checked, number
from forerun.runtime.tree import Float64

LARGEST = 64
"""Steps of more rows are corrected like this one."""
BELIEVED = 2.0
"""The weight of the calibration before the first step; each step halves it."""
CHANGED = 1.5
"""The factor by which the estimate for a plain step must have moved to need one."""
CLIP = 3.0
"""The factor by which a step may differ from the estimate: a pause of the process counts as no more than that."""

_ROWS = np.arange(1, LARGEST + 1, dtype=np.float64)
_NEAR: Float64 = np.minimum.outer(_ROWS, _ROWS) / np.maximum.outer(_ROWS, _ROWS)


@dataclass
class CurrentCost(Checked):
    """The time of a step by its rows: an exponentially weighted estimate for each size, from the steps that ran.

    The calibration used one context, in one state of the machine. As the context grows, or another process takes
    memory bandwidth or a core, some sizes become slower than others. Each size has the recent ratio of its times to the
    calibrated one, which fades as other sizes run. The estimate for a size is the mean of the ratios, weighted by how
    near the sizes are: those that have not run lately follow those that have.
    """

    calibrated: CostModel
    memory: float = number(0.85, above=0, below=1)  # the weight of a size's past at its next step
    fading: float = number(0.98, above=0, below=1)  # the weight of a size's ratio after a step of another
    _weights: Float64 = field(init=False, default_factory=lambda: np.zeros(LARGEST))  # by size
    _ratios: Float64 = field(init=False, default_factory=lambda: np.ones(LARGEST))
    _prior: float = field(init=False, default=BELIEVED)
    _last: float = field(init=False, default=1.0)  # the ratio of the largest size
    _table: Float64 = field(init=False)
    _plain: tuple[int, float] = field(init=False)  # the last plain step: its rows, and the estimate when it ran

    def __post_init__(self) -> None:
        super().__post_init__()
        self._table = self.calibrated.table(LARGEST)
        self._plain = 1, self.seconds(1)

    def table(self, rows: int) -> Float64:
        """Returns the seconds [rows] of steps of 1 to `rows` rows; they do not decrease."""
        if rows <= LARGEST:
            return self._table[:rows]
        return np.append(self._table, self._last * self.calibrated.table(rows)[LARGEST:])

    def seconds(self, rows: int) -> float:
        """Returns the seconds of a step of `rows` rows."""
        return float(self._table[rows - 1] if rows <= LARGEST else self.table(rows)[-1])

    @property
    def is_stale(self) -> bool:
        """Whether larger steps have become slower or faster since a plain one ran, which then may have, too."""
        rows, seconds = self._plain
        return not 1 / CHANGED < self.seconds(rows) / seconds < CHANGED

    def observe(self, rows: int, seconds: float, plain: int = 1) -> None:
        """Called with the time of a step of `rows` rows; a plain one has `plain` rows."""
        size = min(rows, LARGEST) - 1
        calibrated, weight = self.calibrated.seconds(rows), float(self._weights[size])
        known = float(self._ratios[size]) if weight > 0 else self.seconds(rows) / calibrated
        ratio = min(max(seconds / calibrated, known / CLIP), known * CLIP)
        past = min(self.memory, max(0.5, weight))
        self._ratios[size] = past * known + (1 - past) * ratio
        self._weights *= self.fading
        self._weights[size] = 1.0
        self._prior /= 2
        ratios = (_NEAR @ (self._weights * self._ratios) + self._prior) / (_NEAR @ self._weights + self._prior)
        self._last = float(ratios[-1])
        self._table = np.maximum.accumulate(ratios * self.calibrated.table(LARGEST))
        if rows == plain:
            self._plain = rows, self.seconds(rows)
