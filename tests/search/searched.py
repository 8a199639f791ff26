"""Models, policies and scorers for tests of searches."""

from typing import Any

from forerun.runtime.drafters.base import Drafter
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.drafters.token_recycling import TokenRecycling
from forerun.runtime.engine import Engine
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.runtime.request import Generation, Request
from forerun.runtime.sampling import SamplingSettings
from forerun.search import BeamSearch, BestOf, Scored
from tests.runtime.oracle import Oracle
from tests.search.brute import Smooth

SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_k": 12, "seed": 4}


class Words:
    """A tokenizer of numbers."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        return "".join(f"{token} " for token in token_ids)


def model_of(oracle: Oracle | None = None, speculative: bool = True, blocks: int | None = 300) -> CompiledModel:
    oracle = oracle or Smooth()
    drafter = Merged([PromptLookup(), TokenRecycling(oracle.vocabulary)]) if speculative else Drafter()
    return CompiledModel(oracle, drafter, Fixed(6), Words(), engine=Engine(oracle, blocks))


def all_free(model: CompiledModel) -> bool:
    cache = model.engine.cache
    return not cache.is_used and cache.free == cache.blocks and cache.free_requests == 64


def total(prompt_ids: list[int], token_ids: list[int], text: str | None) -> float:
    return float(sum(token_ids))


def request_of(prompt: list[int], stop: set[int], length: int, identifier: int) -> Request:
    settings = SamplingSettings(do_sample=True, **SAMPLED)
    return Request(prompt, length, settings, frozenset(stop), identifier)


def bits(texts: list[Generation]) -> list[tuple[Any, ...]]:
    return [(text.token_ids, text.score, text.logits.tobytes()) for text in texts]


POLICIES = {
    "beams": BeamSearch(5),
    "groups": BeamSearch(6, num_beam_groups=3, diversity_penalty=0.6),
    "best": BestOf(5),
    "scored": Scored(lambda prompt, tokens, text: -abs(sum(tokens) - 150), (3, 9), 5, 6, 2),
}
