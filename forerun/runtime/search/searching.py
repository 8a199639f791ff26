"""Runs a search by its policy."""

from forerun.runtime.beams import BeamSearch, require_alone
from forerun.runtime.keywords import Asked
from forerun.runtime.request import Generation
from forerun.runtime.search.beam_search import search_beams
from forerun.runtime.search.policies import BestOf, SearchPolicy
from forerun.runtime.search.sampling import best_of
from forerun.runtime.search.scored import search_scored
from forerun.runtime.serving import Serving
from forerun.runtime.spelling import Tokenizer


def search(serving: Serving, asked: Asked, policy: SearchPolicy, tokenizer: Tokenizer | None) -> list[Generation]:
    """Returns the texts that a policy finds, the best first."""
    serving.refuse_within_a_step()
    if isinstance(policy, BeamSearch):
        # What the call itself gives has been refused before: these are from a generation config.
        require_alone(
            asked.request.sampling.do_sample, {"stop_strings": asked.criteria, "stop": asked.stop}, "BeamSearch"
        )
        return search_beams(serving.engine, asked.request, policy, tokenizer)
    if isinstance(policy, BestOf):
        return best_of(serving, asked, policy.n, tokenizer)
    return search_scored(serving, asked, policy, tokenizer)
