"""Code about the places where values are true gives its own logits for any text, or is refused in one sentence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import forerun
from forerun.errors import LookAheadError, TraceError

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


def in_groups(
    m: Model,
    x: Tensor,
    sizes: Callable[[Tensor], Any],
    expert: Callable[[int, Tensor], Tensor],
    descending: bool = False,
) -> Tensor:
    """Rows sorted by expert, in pieces of the sizes that are made of the counts, each of its expert, and put back."""
    scores, ids = routed(m, x)
    order = ids.flatten().sort(descending=descending)[1]
    token = order.div(2, rounding_mode="trunc")
    counts = functional.one_hot(ids, EXPERTS).sum((0, 1))
    pieces = [expert(number, rows) for number, rows in enumerate(x[token].split(sizes(counts)))]
    return torch.zeros_like(x).index_add(0, token, torch.cat(pieces) * scores.flatten()[order][:, None])


def split(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    """Without a look at the size, and with one; an expert of several functions."""

    def expert(number: int, rows: Tensor) -> Tensor:
        if rows.shape[0] == 0:
            return rows
        gate, up = functional.linear(rows, m.experts[number]).chunk(2, dim=-1)
        return torch.cat([functional.silu(gate) * up, gate], dim=-1)

    return in_groups(m, x, lambda counts: counts.tolist(), expert)


def split_in_place(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    return in_groups(m, x, lambda counts: [each.item() for each in counts], lambda number, rows: rows.mul_(number + 1))


def of_remainders(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    """Experts share matrices: what is looked up for a row is not its own number."""
    chosen = m.router(x).argmax(-1)
    order = chosen.argsort(stable=True)
    return x + torch.bmm(x[order][:, None], m.experts[chosen[order] % 2])[:, 0][order.argsort()]


@pytest.mark.parametrize("use", [added, put, changed, skipped, dropped, summed, split, split_in_place, of_remainders])
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


def split_by_others(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    return in_groups(m, x, lambda counts: counts.tolist()[::-1], lambda number, rows: rows @ m.experts[number])


def split_by_sums(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    """The first experts share what they compute."""
    return in_groups(m, x, lambda c: [c[0] + c.tolist()[1], *c.tolist()[2:]], lambda number, rows: rows)


def split_and_running(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    return in_groups(m, x, lambda counts: counts.tolist(), lambda number, rows: rows.cumsum(0))


def appended(m: Model, x: Tensor, order: Callable[[tuple[Tensor, ...]], list[Tensor]]) -> Tensor:
    counts = functional.one_hot(m.router(x).argmax(-1), EXPERTS).sum(0)
    return x + torch.cat(order(x.split(counts.tolist())))[: x.shape[0]]


def appended_backwards(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    return appended(m, x, lambda pieces: [*reversed(pieces)])


def appended_in_part(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    return appended(m, x, lambda pieces: [*pieces[:-1]])


def appended_to_others(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    return appended(m, x, lambda pieces: [*pieces, x])


def together(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    return appended(m, x, lambda pieces: [pieces[0] + pieces[1], *pieces[1:]])


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (split_by_others, "splits rows by counts"),
        (split_by_sums, "counts the places where values are true"),
        (split_and_running, "with cumsum, in which places may meet"),
        (appended_backwards, "appends rows by counts"),
        (appended_in_part, "appends rows by counts"),
        (appended_to_others, "appends rows by counts"),
        (together, "rows of several pieces at once"),
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


def split_otherwise(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    """Rows are in the order of their experts from the last to the first, and counts are not."""
    return in_groups(m, x, lambda c: c.tolist(), lambda number, rows: rows @ m.experts[number], descending=True)


def of_early_rows(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    """Behind the 15th row, each is taken for that one."""
    chosen = m.router(x).argmax(-1)
    order = chosen.argsort(stable=True)
    return x + torch.bmm(x[order.clamp(max=14)][:, None], m.experts[chosen[order]])[:, 0][order.argsort()]


@pytest.mark.parametrize("use", [split_otherwise, of_early_rows])
def test_rows_that_are_not_sorted_alike_are_refused(use: Any) -> None:
    with pytest.raises(LookAheadError):
        forerun.compile(Model(use).eval(), strategy="autoregressive", target="reference", max_length=32)


def changed_through_a_piece(m: Model, ids: Tensor, x: Tensor) -> Tensor:
    """Pieces are views: who changes one changes the rows."""
    chosen = m.router(x).argmax(-1)
    order = chosen.argsort(stable=True)
    rows = x[order]
    pieces = rows.split(functional.one_hot(chosen, EXPERTS).sum(0).tolist())
    pieces[0].neg_()
    return x + (torch.cat(pieces) + rows)[order.argsort()]


def test_rows_that_are_changed_through_a_piece_are_refused() -> None:
    model = Model(changed_through_a_piece).eval()
    with pytest.raises(TraceError, match="reads rows of which it has changed a piece in place"):
        forerun.compile(model, strategy="autoregressive", target="reference", max_length=32)
