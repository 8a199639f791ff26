"""SkipDecode: the number of layers falls with the position, and the upper layers are kept.

After Del Corro et al., "SkipDecode" (arXiv 2307.02628): all tokens at a position get the same number of layers; it
falls linearly between two bounds and never rises; the lower to middle layers are bypassed after a few warm-up layers.
In a draft, the position is the depth in the tree, and verification makes up for the lost quality.
"""

from dataclasses import dataclass

from forerun.errors import InvalidOptionError
from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.parts.decayed_depth import PartByDepth, without
from forerun.runtime.drafters.parts.layers import layer_branches
from forerun.runtime.drafters.self_draft import PartMethod
from forerun.runtime.engine import Engine
from forerun.runtime.fields import Checked, integer, number


@dataclass(frozen=True)
class SkipDecode(Checked):
    """Keeps `most` of the layers at the root, falling to `least` at depth `falls_to`; the first `warm_up` stay."""

    most: float = number(0.7, above=0, most=1)
    least: float = number(0.4, above=0, most=1)
    falls_to: int = integer(6, least=1)
    warm_up: int = integer(1, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least > self.most:
            raise InvalidOptionError(f"least of SkipDecode must be at most its most, {self.most}, not {self.least}")

    def build(self, engine: Engine, cost: CostModel | None) -> PartMethod:
        layers = layer_branches(engine.executable)
        total = len(layers)
        fall = (self.most - self.least) / self.falls_to
        kept = [max(1, round((self.most - fall * depth) * total)) for depth in range(self.falls_to + 1)]
        return PartByDepth(
            [without(layers, min(self.warm_up, count), total - max(0, count - self.warm_up)) for count in kept]
        )
