"""SkipDecode: a schedule of layers that falls with the position, and spends what is left of them on the upper ones.

After Del Corro et al., "SkipDecode" (arXiv 2307.02628): all tokens at a position get the same number of layers; it
falls linearly between two bounds and never rises; the lower to middle layers are bypassed behind a few warm-up layers.
As a draft, the position is the depth in the tree, and verification makes up for what is lost.
"""

from dataclasses import dataclass

from forerun.errors import InvalidOptionError
from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.parts.decayed_depth import PartByDepth, without
from forerun.runtime.drafters.parts.layers import layer_branches
from forerun.runtime.drafters.self_draft import PartMethod
from forerun.runtime.engine import Engine


@dataclass(frozen=True)
class SkipDecode:
    """From `most` of the layers at the root to `least` of them at depth `falls_to`; the first `warm_up` stay."""

    most: float = 0.7
    least: float = 0.4
    falls_to: int = 6
    warm_up: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.least <= self.most <= 1 and self.falls_to >= 1 and self.warm_up >= 0):
            raise InvalidOptionError(
                f"{self} must have least above 0 and up to most, most of at most 1, falls_to of 1 or more, warm_up of "
                "0 or more"
            )

    def build(self, engine: Engine, cost: CostModel | None) -> PartMethod:
        layers = layer_branches(engine.executable)
        total = len(layers)
        fall = (self.most - self.least) / self.falls_to
        kept = [max(1, round((self.most - fall * depth) * total)) for depth in range(self.falls_to + 1)]
        return PartByDepth(
            [without(layers, min(self.warm_up, count), total - max(0, count - self.warm_up)) for count in kept]
        )
