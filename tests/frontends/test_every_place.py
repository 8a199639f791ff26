"""Code about the places where values are true gives its own logits for any text, or is refused in one sentence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import forerun
from forerun.errors import TraceError

VOCABULARY, WIDTH, EXPERTS = 40, 16, 4
PROMPTS = ([3, 8, 5, 2], [0, 5, 0, 7, 0, 0], [0, 0, 0], [39] * 5)


class Model(nn.Module):
    """embedding -> what a function makes of ids [T] and rows [T, width] -> head."""

    def __init__(self, use: Callable[["Model", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.router, self.inner = nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, WIDTH)
        self.experts = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) * 0.3)
        self.use = use

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.use(self, input_ids[0], self.embedding(input_ids[0])))[None]


def mixed(m: Model, x: Tensor, ids: Tensor, scores: Tensor, expert: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The sum over experts, each of all rows, of which those that chose it count."""
    total, chosen = torch.zeros_like(x), functional.one_hot(ids.clamp(min=0), EXPERTS) * (ids >= 0)[..., None]
    for number in range(EXPERTS):
        kept = torch.where((chosen.permute(2, 1, 0)[number] != 0)[..., None], expert(x, m.experts[number]), 0.0)
        total = total + (kept * scores.T[..., None]).sum(0)
    return total


def routed(m: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    scores, ids = m.router(x).softmax(-1).topk(2)
    return scores, ids


def dropped(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    """A choice with a low score is none."""
    scores, chosen = routed(m, x)
    return mixed(m, x, torch.where(scores < 0.3, -1, chosen), scores, lambda rows, w: (rows @ w).expand(2, -1, -1))


def summed(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    """An expert that looks at earlier rows, whatever they chose."""
    scores, chosen = routed(m, x)
    return mixed(m, x, chosen, scores, lambda rows, w: (rows @ w).cumsum(0).expand(2, -1, -1))


def added(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    (at,) = torch.where(ids % 2 == 0)
    return x.index_add(0, at, m.inner(x[at]).tanh())


def put(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    result = x * 2
    result[ids != 0] = m.inner(x[ids != 0])
    return result


def changed(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    result = x + 1
    result[ids < 8] *= 3
    return result


def skipped(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    (at,) = torch.where(ids % 2 == 0)
    if at.numel() == 0:
        return x
    return x.index_add(0, at, x[at])


@pytest.mark.parametrize("use", [added, put, changed, skipped, dropped, summed])
def test_any_text_has_the_models_own_logits(use: Any) -> None:
    model = Model(use).eval()
    compiled = forerun.compile(model, strategy="autoregressive", target="reference", max_length=32)
    for prompt in PROMPTS:
        found = compiled.generate(prompt, max_new_tokens=5, return_logits=True)
        for at in range(len(found.token_ids)):
            with torch.inference_mode():
                expected = model(torch.tensor([[*prompt, *found.token_ids[:at]]]))[0, -1]
            torch.testing.assert_close(torch.from_numpy(found.logits[at]), expected, atol=1e-4, rtol=1e-4)


def packed(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    """What is not padding attends to what is not padding."""
    result, own = x.clone(), x[ids != 0][None]
    result[ids != 0] = functional.scaled_dot_product_attention(own, own, own, is_causal=True)[0]
    return result


def counted(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    (at,) = torch.where(ids % 2 == 0)
    return x / len(at)


def limited(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    (at,) = torch.where(ids % 2 == 0)
    return x.index_add(0, at[:2], x[at[:2]])


def otherwise(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    (at,) = torch.where(ids % 2 == 0)
    if at.numel() == 0:
        return -x
    return x.index_add(0, at, x[at])


def running(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    result = x.clone()
    result[ids != 0] = x[ids != 0].cumsum(0)
    return result


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (packed, "in which places may meet"),
        (running, "with cumsum, in which places may meet"),
        (counted, "counts the places where values are true"),
        (limited, "uses the places where values are true in __getitem__"),
        (otherwise, "does more with the places where values are true"),
    ],
)
def test_what_depends_on_how_many_places_there_are_is_refused(use: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        forerun.compile(Model(use).eval(), strategy="autoregressive", target="reference", max_length=32)
