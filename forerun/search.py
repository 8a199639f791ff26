"""The policies of `CompiledModel.search`: how the texts of a prompt are found and ranked."""

from forerun.runtime.beams import BeamSearch
from forerun.runtime.search.policies import BestOf, Scored, Scorer

__all__ = ["BeamSearch", "BestOf", "Scored", "Scorer"]
