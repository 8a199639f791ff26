"""Depth that decays with the position: later tokens of a draft get fewer layers.

D^3 (Fan et al., "Position-Aware Depth Decay Decoding", arXiv 2503.08524) keeps floor(L * alpha^i) layers for the i-th
token that it generates. In a draft, i is the depth in the tree, and verification makes up for the lost quality.
"""

from dataclasses import dataclass

from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.parts.layers import layer_branches
from forerun.runtime.drafters.self_draft import PartMethod
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Part
from forerun.runtime.fields import Checked, number


@dataclass(frozen=True)
class DecayedDepth(Checked):
    """Rows at depth d keep floor(start * L * alpha^d) of L layers: half of them first layers, half last layers."""

    start: float = number(0.7, above=0, most=1)
    alpha: float = number(0.9, above=0, most=1)

    def build(self, engine: Engine, cost: CostModel | None) -> PartMethod:
        layers, longest = layer_branches(engine.executable), engine.executable.max_path
        kept = [max(1, int(self.start * len(layers) * self.alpha**depth)) for depth in range(longest)]
        return PartByDepth([without(layers, count - count // 2, len(layers) - count // 2) for count in kept])


class PartByDepth(PartMethod):
    """Parts that leave out more with depth: each evaluates all that later parts do, as their rows read its keys."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts

    def part(self, depth: int) -> Part:
        return self._parts[min(depth, len(self._parts) - 1)]


def without(layers: list[tuple[int, ...]], first: int, last: int) -> Part:
    """Returns the whole step without the layers from `first` up to `last`."""
    return Part(skipped=frozenset(branch for own in layers[first:last] for branch in own))
