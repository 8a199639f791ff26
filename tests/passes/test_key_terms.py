"""Scores with a term of the key's token: a step gives the model's own logits; other terms are refused."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from forerun import ir
from forerun.errors import LookAheadError
from forerun.frontends.torch_export import import_program
from forerun.frontends.tracing import TokenLogits, trace_module
from forerun.frontends.weights import program_weights
from forerun.passes.base import PassContext
from forerun.passes.pipeline import run_pipeline, step_pipeline
from tests.models import VOCABULARY
from tests.passes.programs import BLOCK, LENGTH, Program, texts
from tests.passes.test_equivalence import Reference, check_step, close

WIDTH, HEADS, SIZE = 16, 4, 6
LOW = torch.finfo(torch.float32).min


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def masked(term: Tensor) -> Tensor:
    """The term [H, T] for all queries, and hidden keys: what a model gives torch's attention as its mask."""
    wide = term[None, :, None, :].expand(1, -1, term.shape[-1], -1)
    return wide.masked_fill(~causal(term.shape[-1]), LOW)


def composed(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """torch's attention; heads of the mask are repeated as those of the keys."""
    heads = mask.shape[1]
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask.repeat_interleave(HEADS // heads, 1) if heads > 1 else mask
    )


def spelled(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-1, -2) * SIZE**-0.5 + mask
    return scores.softmax(-1) @ value


@dataclass(frozen=True)
class Case:
    """How many heads the keys and the term have, and how the mask and the attention are written."""

    keys: int
    terms: int
    mask: Callable[[Tensor], Tensor] = masked
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = composed


class KeyTerm(nn.Module):
    """embedding -> attention with a term computed from each token -> head."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.case = case
        self.table, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.query, self.term = nn.Linear(WIDTH, HEADS * SIZE), nn.Linear(WIDTH, case.terms)
        self.key, self.value = nn.Linear(WIDTH, case.keys * SIZE), nn.Linear(WIDTH, case.keys * SIZE)
        self.back = nn.Linear(HEADS * SIZE, WIDTH)

    def forward(self, input_ids: Tensor) -> Tensor:
        """`input_ids[1, T] -> logits[1, T, V]`."""
        x = self.table(input_ids)
        query, key, value = (
            each(x).view(1, x.shape[1], -1, SIZE).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        key, value = (each.repeat_interleave(HEADS // self.case.keys, 1) for each in (key, value))
        mask = self.case.mask(3 * self.term(x)[0].transpose(0, 1))
        attended = self.case.attend(query, key, value, mask).transpose(1, 2).flatten(2)
        return self.head(x + self.back(attended))


def imported(case: Case) -> Program:
    traced = trace_module(TokenLogits(KeyTerm(case)), "KeyTerm", LENGTH)
    module = import_program(traced)
    ir.verify(module)
    return Program(module, program_weights(traced))


def added(term: Tensor) -> Tensor:
    """The term, and a bias by position, in front of what hides keys."""
    length = term.shape[-1]
    bias = -0.1 * (torch.arange(length)[:, None] - torch.arange(length)).abs()
    return torch.where(causal(length), (term[:, None, :] + bias)[None], LOW)


CASES = {
    "one head each": Case(HEADS, HEADS),
    "grouped heads": Case(2, 2),
    "one term for all heads": Case(HEADS, 1),
    "one term for all grouped heads": Case(2, 1),
    "a term of each query head": Case(2, HEADS),
    "beside a bias": Case(2, 2, added),
    "spelled out": Case(HEADS, HEADS, masked, spelled),
    "spelled out, one term": Case(2, 1, added, spelled),
}


@pytest.mark.parametrize("name", CASES)
def test_a_term_of_the_key_is_cached_with_it(name: str) -> None:
    case = CASES[name]
    reference, changed = Reference(imported(case)), imported(case)
    (text,) = texts(0, 1, 13)
    expected = reference.imported.logits(text)
    own = KeyTerm(case)
    with torch.no_grad():
        close(expected, own(torch.tensor([text]))[0], "the imported program")
    passes = step_pipeline(max_rows=64, max_outputs=16, block=BLOCK, candidates=4, fused=False)
    run_pipeline(changed.module, passes, PassContext(changed.weights.__getitem__, max_length=LENGTH))
    close(changed.logits(text), expected, name)
    check_step(reference, changed, name)
    (keys,) = [each for each in ir.states(changed.module).values() if each.symbol.endswith("keys")]
    assert keys.shape == (max(case.keys, case.terms), SIZE + 1)


def crossed(term: Tensor) -> Tensor:
    """A product of what both tokens give."""
    return (term[:, :, None] * term[:, None, :])[None].masked_fill(~causal(term.shape[-1]), LOW)


def larger(term: Tensor) -> Tensor:
    """The key's term where it is larger than the query's."""
    wide = torch.where(term[:, None, :] > term[:, :, None], term[:, None, :], 0.0)
    return wide[None].masked_fill(~causal(term.shape[-1]), LOW)


def of_the_query(term: Tensor) -> Tensor:
    return (term[:, :, None] + torch.where(causal(term.shape[-1]), 0.0, LOW))[None]


def hiding(term: Tensor) -> Tensor:
    """Tokens hide themselves, so that a row may see no key."""
    return masked(torch.where(term > 0, term, LOW))


def infinite(term: Tensor) -> Tensor:
    """Tokens hide themselves by the logarithm of nothing."""
    return masked(torch.log(torch.where(term > 0, term, 0.0)))


def instead(term: Tensor) -> Tensor:
    """Far keys have a score that terms may be below."""
    size = term.shape[-1]
    near = torch.arange(size)[:, None] - torch.arange(size) < 3
    return torch.where(near, added(term), -1e4)


def squared(term: Tensor) -> Tensor:
    """Behind the sum with a bias by position stands a function that is no sum."""
    return (added(term) * 1e-3).square()


def everywhere(term: Tensor) -> Tensor:
    """A term that hides no key: each row sees all of them."""
    return term[None, :, None, :].expand(1, -1, term.shape[-1], -1)


REFUSED: dict[Callable[[Tensor], Tensor], str] = {
    crossed: "combines tokens of different positions",
    larger: "combines tokens of different positions",
    of_the_query: "relates tokens to tokens outside an attention",
    hiding: "relates tokens to tokens outside an attention",
    infinite: "relates tokens to tokens outside an attention",
    instead: "relates tokens to tokens outside an attention",
    squared: "relates tokens to tokens outside an attention",
    everywhere: "attends to later positions",
}


@pytest.mark.parametrize("mask", REFUSED)
def test_a_term_of_another_kind_is_refused(mask: Callable[[Tensor], Tensor]) -> None:
    program = imported(Case(2, 2, mask))
    passes = step_pipeline(max_rows=64, max_outputs=16, block=BLOCK, candidates=4)
    with pytest.raises(LookAheadError, match=REFUSED[mask]):
        run_pipeline(program.module, passes, PassContext(program.weights.__getitem__, max_length=LENGTH))
