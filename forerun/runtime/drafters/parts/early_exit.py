"""Early exit at a fixed layer: the first layers with the model's own norm and head.

After Elhoushi et al., "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding" (arXiv 2404.16710).
Verification runs only the remaining layers, because the draft computes what the target does.
"""

from dataclasses import dataclass

from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.parts.layers import branch_behind, layer_branches
from forerun.runtime.drafters.parts.uniform import FixedPart
from forerun.runtime.drafters.self_draft import PartMethod
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Part
from forerun.runtime.fields import Checked, integer


@dataclass(frozen=True)
class ExitAt(Checked):
    """`layer`: how many layers, from the first, draft."""

    layer: int = integer(least=1)

    def build(self, engine: Engine, cost: CostModel | None) -> PartMethod:
        return FixedPart(Part(leave=branch_behind(layer_branches(engine.executable), self.layer)))
