"""Uniform skipping: skips as many layers as a desired speed-up requires, evenly over depth.

After Liu, Meng and Zhou, "Accelerating Inference in Large Language Models with a Unified Layer Skipping Strategy"
(arXiv 2404.06954): the number of skipped layers follows from the speed-up alone, and intermediate layers are skipped at
even distances, so that adjacent layers see similar representations. Here the result is a draft.
"""

from dataclasses import dataclass

from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.parts.layers import layer_branches
from forerun.runtime.drafters.self_draft import PartMethod
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Part
from forerun.runtime.fields import Checked, number


@dataclass(frozen=True)
class Uniform(Checked):
    """`speedup`: the target's layers over the draft's layers."""

    speedup: float = number(2.0, least=1, below=float("inf"))

    def build(self, engine: Engine, cost: CostModel | None) -> PartMethod:
        layers = layer_branches(engine.executable)
        kept = {int(layer) for layer in evenly(len(layers), round(len(layers) / self.speedup))}
        skipped = (branch for layer, own in enumerate(layers) if layer not in kept for branch in own)
        return FixedPart(Part(skipped=frozenset(skipped)))


class FixedPart(PartMethod):
    """The same part for all rows."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def part(self, depth: int) -> Part:
        return self._part


def evenly(count: int, kept: int) -> list[int]:
    """Returns `kept` of `count` numbers, at least one, evenly spaced and including the first and the last."""
    kept = min(max(kept, 1), count)
    if kept == 1:
        return [0]
    return [index * (count - 1) // (kept - 1) for index in range(kept)]
