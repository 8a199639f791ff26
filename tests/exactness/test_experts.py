"""Mixtures of experts, from graphs alone: transformers' greedy tokens, and the same bits in any schedule."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssMLP

import forerun
from forerun.runtime.certify import certify
from tests.contract import SAMPLINGS, check_bits_of_plain_decoding, check_tokens_of_transformers
from tests.models import FAMILIES, HIDDEN, MIXTURES
from tests.passes.test_raise_experts import SPELLED, Experts

NEW_TOKENS = 48


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request: pytest.FixtureRequest) -> tuple[Any, forerun.CompiledModel]:
    model = MIXTURES[request.param]()
    return model, forerun.compile(model, strategy=forerun.TreeSpec(policy=forerun.Fixed(12)), max_length=256)


def test_greedy_tokens_are_those_of_transformers(mixture: tuple[Any, forerun.CompiledModel]) -> None:
    check_tokens_of_transformers(*mixture, NEW_TOKENS)


@pytest.mark.parametrize("options", SAMPLINGS)
def test_bits_are_those_of_plain_decoding(mixture: tuple[Any, forerun.CompiledModel], options: dict[str, Any]) -> None:
    check_bits_of_plain_decoding(mixture[1], options, NEW_TOKENS)


def test_certified(mixture: tuple[Any, forerun.CompiledModel]) -> None:
    report = certify(mixture[1].executable, cases=10, seed=1)
    assert report.exact, str(report)


class Spelled(nn.Module):
    """Experts as another model spells them, in the place of a Llama's feed-forward part."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.inner = Experts(SPELLED[name], HIDDEN, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.layer(x.reshape(-1, HIDDEN)).view(x.shape)


class Biased(nn.Module):
    """gpt_oss's experts: transposed matrices, biases, and gates that alternate with what they gate."""

    def __init__(self) -> None:
        super().__init__()
        config = GptOssConfig(hidden_size=HIDDEN, intermediate_size=48, num_local_experts=8, num_experts_per_tok=2)
        config._experts_implementation = "batched_mm"
        self.inner = GptOssMLP(config)
        torch.manual_seed(1)
        for each in self.inner.parameters():
            nn.init.normal_(each, std=0.2)  # a part of a model has no values yet

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[0]


@pytest.mark.parametrize("spelling", ["transposed", "one", "dense", "split", "gpt_oss"])
def test_other_spellings(spelling: str) -> None:
    model = FAMILIES["llama"]()
    for layer in model.model.layers:
        layer.mlp = Biased() if spelling == "gpt_oss" else Spelled(spelling)
    compiled = forerun.compile(model, strategy=forerun.TreeSpec(policy=forerun.Fixed(12)), max_length=128)
    check_tokens_of_transformers(model, compiled, NEW_TOKENS)
    report = certify(compiled.executable, cases=5, seed=1)
    assert report.exact, str(report)


class Held(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, use_cache=False).logits


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_a_loop_over_chosen_experts_is_one_computation(name: str) -> None:
    """A module of one's own cannot be told to compute its experts otherwise."""
    model = MIXTURES[name]()
    model.set_experts_implementation("eager")
    compiled = forerun.compile(Held(model), strategy=forerun.TreeSpec(policy=forerun.Fixed(12)), max_length=128)
    check_tokens_of_transformers(model, compiled, NEW_TOKENS)
    report = certify(compiled.executable, cases=5, seed=1)
    assert report.exact, str(report)
    experts = [each for each in compiled.executable.step.weights.values() if len(each.shape) == 3]
    assert experts, "the experts of a layer are one weight"
    assert all(each.read is not None and each.read <= each.bytes // 2 for each in experts), "a row reads some of them"
