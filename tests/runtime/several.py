"""Models over the oracle for requests that share steps, and each request by itself."""

from oracle import Oracle

from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.drafters.token_recycling import TokenRecycling
from forerun.runtime.engine import Engine
from forerun.runtime.generation import decode
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import CostAware, Fixed
from forerun.runtime.request import Request

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [1, 2, 3, 4, 5], [1, 2, 3]]


class Words:
    """A tokenizer of numbers."""

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode(self, token_ids, skip_special_tokens=False, **options):
        return "".join(f"{token} " for token in token_ids)


def drafters(oracle: Oracle) -> dict[str, Drafter]:
    recycling = TokenRecycling(oracle.vocabulary)
    return {
        "none": Drafter(),
        "lookup": PromptLookup(),
        "recycling": recycling,
        "recycling prompts": TokenRecycling(oracle.vocabulary, wants_prompt_rows=True),
        "both": Merged([PromptLookup(), TokenRecycling(oracle.vocabulary)]),
    }


def policies() -> dict[str, object]:
    return {"fixed": Fixed(6), "cost": CostAware(CostModel((1, 4, 16), (1.0, 1.1, 2.0)), most=8)}


def model_of(oracle: Oracle, drafter: str = "both", policy: str = "fixed", blocks: int | None = None) -> CompiledModel:
    engine = Engine(oracle, blocks)
    return CompiledModel(oracle, drafters(oracle)[drafter], policies()[policy], Words(), engine=engine)


def alone(request: Request) -> tuple[list[int], list[bytes]]:
    """A request's tokens and logits by itself under plain decoding."""
    steps = list(decode(Engine(Oracle()), request, Drafter(), Fixed(1)))
    rows = [row.tobytes() for step in steps if step.logits is not None for row in step.logits]
    return [token for step in steps for token in step.tokens], rows


def all_free(model: CompiledModel) -> bool:
    cache = model.engine.cache
    return not cache.is_used and cache.free == cache.blocks and cache.free_requests == 64
