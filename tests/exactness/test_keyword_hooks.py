"""Keywords that change scores: greedy texts are transformers', and all texts have the same bits under any strategy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, RepetitionPenaltyLogitsProcessor
from transformers.generation import LogitsProcessor, SuppressTokensLogitsProcessor

import forerun
from forerun.progress import SilentProgress
from forerun.runtime.model import CompiledModel
from tests.models import FAMILIES

VOCABULARY, NEW, END = 40, 16, 7
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "seed": 3}
random = np.random.default_rng(0)
# Repetitive, so that drafts are made; of one length, so that transformers takes them without padding.
PROMPTS = [(random.integers(0, VOCABULARY, 4).tolist() * 2)[:6] for _ in range(20)]
SINGLE = [[token] for token in range(20)]


class Alternating(LogitsProcessor):
    """Lowers the scores of one parity, and keeps no state."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert input_ids.dtype == torch.int64
        lowered = torch.arange(scores.shape[1])[None] % 2 == input_ids[:, -1:] % 2
        return torch.where(lowered, scores - 2, scores)


def doubled(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(torch.arange(scores.shape[1]) == input_ids.shape[1] % 5, 3.0)


def allowed(number: int, input_ids: torch.Tensor) -> list[int]:
    return [(int(input_ids[-1]) * 3 + number + step) % VOCABULARY for step in range(7)]


CASES: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "repetition favoured": {"repetition_penalty": 0.8},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "no token twice": {"no_repeat_ngram_size": 1},
    "sequence_bias": {"sequence_bias": {(3,): 2.0, (4,): -3.0, (1, 2): 4.0, (5, 1, 2): 2.5, (9, 2): float("-inf")}},
    "sequence_bias as a list": {"sequence_bias": [[[token], 0.25 * token] for token in range(20)]},
    "bad_words_ids": {"bad_words_ids": [[3], [END], *([a, b] for a in range(0, 40, 3) for b in range(0, 40, 2))]},
    "suppress_tokens": {"suppress_tokens": list(range(0, 40, 2))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(30))},
    "forced_eos_token_id": {"forced_eos_token_id": 11},
    "several forced": {"forced_eos_token_id": [END, 11], "repetition_penalty": 1.3},
    "min_new_tokens": {"min_new_tokens": 9, "repetition_penalty": 1.2},
    "min_length and a forced end": {"min_length": 22, "forced_eos_token_id": END},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (2, 1.3)},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": allowed},
    "nothing is left but what is allowed": {
        "prefix_allowed_tokens_fn": allowed, "bad_words_ids": [[token] for token in range(28) if token != END]
    },
    "logits_processor": {"logits_processor": LogitsProcessorList([Alternating(), SuppressTokensLogitsProcessor([1])])},
    "a function": {"logits_processor": [doubled], "no_repeat_ngram_size": 3},
    "a processor in a keyword's place": {
        "logits_processor": [doubled, RepetitionPenaltyLogitsProcessor(2.0)], "repetition_penalty": 1.1
    },
    "a processor twice": {"logits_processor": [doubled, (twice := Alternating()), twice]},
    "renormalize_logits": {"renormalize_logits": True, "repetition_penalty": 1.2},
    "all together": {
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words_ids": [[5], [6, 7]], "suppress_tokens": [8],
        "begin_suppress_tokens": [9, 10], "min_new_tokens": 4, "forced_eos_token_id": 11, "sequence_bias": {(12,): 1.0},
        "exponential_decay_length_penalty": (3, 1.1), "logits_processor": [doubled],
    },
    "a generation config": {"generation_config": GenerationConfig(repetition_penalty=1.4, suppress_tokens=[4, 5])},
}  # fmt: skip
FORCED: dict[str, dict[str, Any]] = {
    "forced_bos_token_id": {"forced_bos_token_id": 3},
    "forced, and suppressed after": {"forced_bos_token_id": 3, "begin_suppress_tokens": list(range(30))},
    "suppressed": {"begin_suppress_tokens": list(range(30))},
}
OURS: dict[str, dict[str, Any]] = {
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 0.9, "presence_penalty": -0.5},
    "logit_bias": {"logit_bias": {3: 2.5, 4: -100, 20: 1}},
    "allowed_token_ids": {"allowed_token_ids": list(range(5, 25))},
    "one token": {"allowed_token_ids": [6]},
}
"""transformers has no such keywords."""


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return FAMILIES["llama"](vocab_size=VOCABULARY)


@pytest.fixture(scope="module")
def model(reference: PreTrainedModel) -> CompiledModel:
    return forerun.compile(reference, max_length=128, progress=SilentProgress())


@pytest.fixture(scope="module")
def plain(model: CompiledModel) -> CompiledModel:
    return forerun.with_strategy(model, "autoregressive", progress=SilentProgress())


def theirs(reference: PreTrainedModel, prompts: list[list[int]], options: dict[str, Any]) -> tuple[list[Any], Any]:
    ids = torch.tensor(prompts)
    found = reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, eos_token_id=END, pad_token_id=0,
        return_dict_in_generate=True, output_scores=True, **options,
    )  # fmt: skip
    texts = [row[len(prompts[0]) :].tolist() for row in found.sequences]
    ended = [text[: text.index(END) + 1] if END in text else text for text in texts]
    return ended, torch.stack(found.scores, 1).numpy()


@pytest.mark.parametrize(
    ("prompts", "options"),
    [pytest.param(PROMPTS, options, id=name) for name, options in CASES.items()]
    + [pytest.param(SINGLE, options, id=f"{name}, one token") for name, options in FORCED.items()],
)
def test_greedy_texts_are_transformers(
    reference: PreTrainedModel, model: CompiledModel, plain: CompiledModel, prompts: list[list[int]], options: Any
) -> None:
    expected, scores = theirs(reference, prompts, options)
    without, _ = theirs(reference, prompts, {})
    assert expected != without or options.keys() == {"prefix_allowed_tokens_fn"}, "the keyword does something"
    own: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": END, "output_scores": True}
    for each in (model, plain):
        found = each.generate(prompts, **own, **options)
        assert [text.token_ids for text in found] == expected
        for text, row in zip(found, scores, strict=True):
            row = row[: len(text.token_ids)]
            assert np.array_equal(text.scores == -np.inf, row == -np.inf)
            assert np.allclose(text.scores, row, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("way", [{}, SAMPLED, SAMPLED | {"top_k": 30, "min_p": 0.02, "typical_p": 0.9}])
@pytest.mark.parametrize("options", [*CASES.values(), *OURS.values()], ids=[*CASES, *OURS])
def test_bits_are_those_of_plain_decoding(
    model: CompiledModel, plain: CompiledModel, options: dict[str, Any], way: dict[str, Any]
) -> None:
    own: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": END, "output_scores": True}
    prompts = PROMPTS[:4]
    slow = plain.generate(prompts, **own, **options, **way)
    for _ in range(2):  # what it has learned differs
        fast = model.generate(prompts, **own, **options, **way)
        for one, other in zip(fast, slow, strict=True):
            assert one.has_bits_of(other)
            assert one.scores is not None
            assert other.scores is not None
            assert one.scores.tobytes() == other.scores.tobytes()


def penalised(presence: float, frequency: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """OpenAI's formula: https://platform.openai.com/docs/advanced-usage#frequency-and-presence-penalties."""

    def processor(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.bincount(input_ids[0, 6:], minlength=VOCABULARY)
        return scores - counts * frequency - (counts > 0).float() * presence

    return processor


def test_what_is_openais(model: CompiledModel) -> None:
    for prompt in PROMPTS:
        for presence, frequency in ((1.5, 0.0), (0.0, 0.7), (-0.5, 0.5)):
            found = model.generate(prompt, NEW, presence_penalty=presence, frequency_penalty=frequency).token_ids
            expected = model.generate(prompt, NEW, logits_processor=penalised(presence, frequency)).token_ids
            assert found == expected
        single = {token: 0.2 * token for token in range(0, 40, 3)}
        found = model.generate(prompt, NEW, logit_bias=single).token_ids
        expected = model.generate(prompt, NEW, sequence_bias={(token,): bias for token, bias in single.items()})
        assert found == expected.token_ids
        suppressed = model.generate(prompt, NEW, suppress_tokens=list(range(20))).token_ids
        assert model.generate(prompt, NEW, allowed_token_ids=range(20, VOCABULARY)).token_ids == suppressed


class Watching(LogitsProcessor):
    """Lowers what it chose last, as it keeps track itself."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(input_ids[0].tolist())
        input_ids[:] = 0  # what it was given is its own
        scores[:, len(self.seen) % VOCABULARY] += 3
        return scores


@pytest.mark.parametrize("way", [{}, SAMPLED])
def test_a_processor_sees_each_token_once_and_in_order(
    model: CompiledModel, plain: CompiledModel, way: dict[str, Any]
) -> None:
    for prompt in PROMPTS[:8]:
        expected = plain.generate(prompt, NEW, logits_processor=Watching(), eos_token_id=END, **way).token_ids
        watching = Watching()
        found = model.generate(prompt, NEW, logits_processor=watching, eos_token_id=END, **way).token_ids
        assert found == expected
        assert watching.seen == [prompt + found[:count] for count in range(len(found))]
