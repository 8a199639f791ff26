"""A module that is one step over a token with its states gives its own logits, or is refused in one sentence."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import forerun
from forerun.errors import ForerunError

VOCABULARY, WIDTH = 40, 16
PROMPT = [3, 8, 5, 2, 7]
States = Sequence[Tensor]


class Step(nn.Module):
    """embedding -> what a function makes of x [1, width] and the states -> head."""

    def __init__(self, use: Callable[["Step", Tensor, States], tuple[Tensor, list[Tensor]]], *first: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.inner, self.use, self.first = nn.Linear(WIDTH, WIDTH), use, first

    def initial_states(self) -> list[Tensor]:
        return [each.clone() for each in self.first]

    def forward(self, token: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        y, after = self.use(self, self.embedding(token[0]), states)
        return self.head(y)[None], after


def sums(m: Step, x: Tensor, states: States) -> tuple[Tensor, list[Tensor]]:
    total = states[0] * 0.5 + m.inner(x)
    return total, [total]


def delayed(m: Step, x: Tensor, states: States) -> tuple[Tensor, list[Tensor]]:
    """The embedding of two tokens before, handed on twice."""
    older, last = states
    return x + 2 * older, [last, x]


def window(m: Step, x: Tensor, states: States) -> tuple[Tensor, list[Tensor]]:
    recent = torch.cat([states[0], x])
    return recent.sum(0, keepdim=True).tanh(), [recent[1:]]


def window_of_sums(m: Step, x: Tensor, states: States) -> tuple[Tensor, list[Tensor]]:
    """A window over what a recurrence gives, which reads the window."""
    total = states[0] * 0.5 + m.inner(states[1].sum(0, keepdim=True)).tanh() + x
    return total, [total, torch.cat([states[1], total])[1:]]


def layers(m: Step, x: Tensor, states: States) -> tuple[Tensor, list[Tensor]]:
    """Two layers' sums in one tensor."""
    (both,) = states
    first = both[0:1] * 0.5 + x
    second = both[1:2] * 0.5 + m.inner(first).tanh()
    return second, [torch.cat([first, second])]


def flagged(m: Step, x: Tensor, states: States) -> tuple[Tensor, list[Tensor]]:
    """Whether the number before was positive."""
    return torch.where(states[0], x, -x), [x > 0]


ZEROS = torch.zeros(1, WIDTH)
WORKS: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
    "a sum": (sums, (ZEROS,)),
    "a delay": (delayed, (ZEROS, ZEROS)),
    "a window": (window, (torch.zeros(3, WIDTH),)),
    "a window of a recurrence": (window_of_sums, (ZEROS, torch.zeros(2, WIDTH))),
    "layers side by side": (layers, (torch.zeros(2, WIDTH),)),
    "truth values": (flagged, (torch.zeros(1, WIDTH, dtype=torch.bool),)),
}


@pytest.mark.parametrize("strategy", ["autoregressive", "tree_spec"])
@pytest.mark.parametrize("name", WORKS)
def test_a_step_has_its_own_logits(name: str, strategy: str) -> None:
    use, first = WORKS[name]
    model = Step(use, *first).eval()
    compiled = forerun.compile(model, strategy=strategy, target="reference", max_length=64)
    found = compiled.generate(PROMPT, max_new_tokens=12, return_logits=True)
    states, text = model.initial_states(), [*PROMPT, *found.token_ids]
    with torch.inference_mode():
        for at, token in enumerate(text[:-1]):
            logits, states = model(torch.tensor([[token]]), states)
            if at >= len(PROMPT) - 1:
                got = torch.from_numpy(found.logits[at - len(PROMPT) + 1])
                torch.testing.assert_close(got, logits[0, 0], atol=1e-4, rtol=1e-4)


def numbers(m: Step, x: Tensor, states: States) -> tuple[Tensor, list[Tensor]]:
    count = states[0] * 3 + 1
    return x * (count % 5), [count]


def last_number(m: Step, x: Tensor, states: States) -> tuple[Tensor, list[Tensor]]:
    return x * states[0], [(x[:, :1] * 10).long()]


def turning(m: Step, x: Tensor, states: States) -> tuple[Tensor, list[Tensor]]:
    """Another step from the 21st token on."""
    seen = torch.cat([states[0], x])
    return -x if seen.shape[0] > 20 else x, [seen]


@pytest.mark.parametrize(
    ("use", "first", "message"),
    [
        (numbers, torch.zeros(1, dtype=torch.int64), "rewritten from its own whole numbers"),
        (last_number, torch.zeros(1, 1, dtype=torch.int64), "reads whole numbers of earlier positions"),
        (turning, torch.zeros(0, WIDTH), "traced for at most 20 positions, fewer than max_length=64"),
        (sums, torch.ones(1, WIDTH), "has initial states other than zero"),
    ],
)
def test_other_states_are_refused_in_one_sentence(use: Any, first: Tensor, message: str) -> None:
    with pytest.raises(ForerunError, match=message):
        forerun.compile(Step(use, first).eval(), strategy="autoregressive", target="reference", max_length=64)
