"""Small modules built to mislead: each agrees with its own forward pass row by row, or is refused by a clear error."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as functional
from torch import nn

import forerun
from forerun.errors import ForerunError, LookAheadError, UnsupportedOperationError

VOCABULARY, WIDTH, LENGTH = 32, 16, 80
Layer = Callable[["Sneaky", torch.Tensor, torch.Tensor], torch.Tensor]


class Sneaky(nn.Module):
    """embedding -> the layer under test -> head."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.table = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.seen = nn.Buffer(torch.ones(LENGTH, LENGTH).tril())
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.layer = layer

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self, input_ids, self.embedding(input_ids)))


def heads(module: Sneaky, x: torch.Tensor, count: int = 4) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values [1, H, T, D]."""
    parts = module.project(x).chunk(3, dim=-1)
    return tuple(each.view(1, x.shape[1], count, WIDTH // count).transpose(1, 2) for each in parts)


def merged(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).reshape(1, x.shape[2], WIDTH)


def causal(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(x.shape[1], x.shape[1]).tril() == 1


def spelled(
    module: Sneaky, x: torch.Tensor, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Attention whose scores [1, H, T, T] go through `change(scores, visible)`."""
    query, key, value = heads(module, x)
    scores = change(query @ key.transpose(-1, -2), causal(x))
    return merged(torch.softmax(scores, dim=-1) @ value)


LOW = torch.finfo(torch.float32).min


def kept(seen: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Scores that are multiplied by numbers, and numbers added to them."""

    def change(scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        own = seen[: scores.shape[-2], : scores.shape[-1]]
        return scores * own + -1e4 * (1 - own)

    return change


WORKS: dict[str, Layer] = {
    "a truth value that crosses kernels": lambda m, i, x: torch.where(
        (i % 3 != 0)[..., None], functional.gelu(m.project(functional.silu(m.project(x)[..., :WIDTH])))[..., :WIDTH], x
    ),
    "positions alone": lambda m, i, x: m.table[: i.shape[1]][None],
    "learned positions": lambda m, i, x: x + m.table[torch.arange(i.shape[1])],
    "an index that wraps": lambda m, i, x: x + m.table[i - 5],
    "a mask behind a scale": lambda m, i, x: spelled(m, x, lambda s, v: torch.where(v, s, LOW) * 0.5),
    "a mask of zeros and ones": lambda m, i, x: spelled(m, x, kept(m.seen)),
    "a soft cap": lambda m, i, x: spelled(m, x, lambda s, v: torch.where(v, 3.0 * torch.tanh(s / 3.0), LOW)),
    "a sum over earlier tokens": lambda m, i, x: x.cumsum(1),
    "one key head": lambda m, i, x: merged(
        functional.scaled_dot_product_attention(
            heads(m, x)[0], *(each[:, :1].expand(-1, 4, -1, -1) for each in heads(m, x)[1:]), is_causal=True
        )
    ),
}

REFUSED: dict[str, tuple[type[ForerunError], Layer]] = {
    "a table counted from the end": (
        LookAheadError,
        lambda m, i, x: x + m.table[: i.shape[1]][torch.arange(i.shape[1]) - 1],
    ),
    "the length as a scale": (
        LookAheadError,
        lambda m, i, x: x * torch.log(torch.arange(i.shape[1])[torch.tensor([-1])].float() + 2.0),
    ),
    "a mask that knows the length": (
        LookAheadError,
        lambda m, i, x: spelled(
            m, x, lambda s, v: torch.where(v & (torch.arange(i.shape[1])[-1:].clamp(max=40) > 20), s, LOW)
        ),
    ),
    "a mean": (LookAheadError, lambda m, i, x: x + x.mean(1, keepdim=True)),
    "a softmax over the sequence": (LookAheadError, lambda m, i, x: torch.softmax(x, dim=1)),
    "no mask": (LookAheadError, lambda m, i, x: merged(functional.scaled_dot_product_attention(*heads(m, x)))),
    "the last token": (LookAheadError, lambda m, i, x: x + x[:, -1:]),
    "a mask of tokens": (
        LookAheadError,
        lambda m, i, x: merged(
            functional.scaled_dot_product_attention(*heads(m, x), attn_mask=causal(x) & (i != 0)[:, None, None, :])
        ),
    ),
    "a scale for each head": (
        UnsupportedOperationError,
        lambda m, i, x: spelled(m, x, lambda s, v: torch.where(v, s * m.table[0, :4].view(1, 4, 1, 1), LOW)),
    ),
    "a mask of other numbers": (UnsupportedOperationError, lambda m, i, x: spelled(m, x, kept(m.seen * 0.5))),
    "a mask that is none any more": (
        UnsupportedOperationError,
        lambda m, i, x: spelled(m, x, lambda s, v: torch.where(v, s, -1e4) * 1e-4),
    ),
    "dropout that is on": (UnsupportedOperationError, lambda m, i, x: functional.dropout(x, 0.5, True)),
    "a sum over earlier tokens' numbers": (UnsupportedOperationError, lambda m, i, x: x * i.cumsum(1)[..., None]),
}


@pytest.mark.parametrize("target", ["reference", "cpu"])
@pytest.mark.parametrize("name", WORKS)
def test_works_like_its_own_forward_pass(name: str, target: str) -> None:
    module = Sneaky(WORKS[name]).eval()
    model = forerun.compile(module, strategy="autoregressive", target=target, max_length=LENGTH)
    prompt = torch.randint(0, VOCABULARY, (70,), generator=torch.Generator().manual_seed(1))
    out = model.generate(prompt, max_new_tokens=4, return_logits=True)
    with torch.inference_mode():
        full = module(torch.tensor([[*prompt.tolist(), *out.token_ids]]))[0, 69:-1]
    assert out.logits is not None
    assert torch.allclose(torch.from_numpy(out.logits), full, atol=1e-4), (
        (torch.from_numpy(out.logits) - full).abs().max()
    )


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_with_a_reason(name: str) -> None:
    error, layer = REFUSED[name]
    with pytest.raises(error):
        forerun.compile(Sneaky(layer).eval(), strategy="autoregressive", target="reference", max_length=LENGTH)
