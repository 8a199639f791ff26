"""Methods that examine the context before they draft, in a small share of the steps' time."""

import time

from forerun.runtime.cache import StepSlots
from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.base import Context
from forerun.runtime.drafters.launch_cost import Allowance
from forerun.runtime.drafters.self_draft import PartMethod


class Searching(PartMethod):
    """Searches once per iteration; where time counts, only when an allowance has been saved up."""

    def __init__(self, cost: CostModel | None) -> None:
        self._allowance = Allowance()
        self._step = cost.seconds(1) if cost else 0.0

    @property
    def converged(self) -> bool:
        """Whether there is nothing left to search for."""
        return False

    def prepare(self, context: Context, slots: StepSlots, price: float) -> None:
        self._allowance.earn(self._step)
        if self.converged or (price > 0 and not self._allowance.positive):
            return
        began = time.perf_counter()
        self.look(context, slots)
        self._allowance.spend(time.perf_counter() - began)

    def look(self, context: Context, slots: StepSlots) -> None:
        """Evaluates what is needed to choose the part again."""
        raise NotImplementedError
