"""Experts as models spell them, raised to `spec.expert_linear`, mean the same."""

import importlib
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from forerun import ir
from forerun.errors import LookAheadError
from forerun.frontends.every_place import EveryPlace
from forerun.frontends.torch_export import import_program
from forerun.frontends.weights import program_weights
from forerun.passes.base import PassContext
from forerun.passes.pipeline import parse_passes, run_pipeline
from forerun.passes.sequence_axis import require_incremental

RAISING = (
    "ungroup-experts,canonicalize,unmerge-sequence,canonicalize,join-experts,canonicalize,raise-experts,canonicalize"
)
EXPERTS, CHOICES, WIDTH, INNER, VOCABULARY = 5, 2, 8, 6, 32


class Experts(nn.Module):
    """A layer of experts behind an embedding; `spelled` computes it from rows [T, width]."""

    def __init__(
        self, spelled: Callable[["Experts", Tensor, Tensor, Tensor], Tensor], width: int = WIDTH, inner: int = INNER
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator), requires_grad=False)

        self.spelled = spelled
        self.table, self.router = weight(VOCABULARY, width), weight(EXPERTS, width)
        self.up, self.up_bias = weight(EXPERTS, inner, width), weight(EXPERTS, inner)
        self.down, self.down_bias = weight(EXPERTS, width, inner), weight(EXPERTS, width)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = functional.embedding(input_ids, self.table)
        return x + self.layer(x.view(-1, x.shape[-1])).view(x.shape)

    @staticmethod
    def back(order: Tensor) -> Tensor:
        """The places to which a permutation moves rows: its inverse."""
        places = torch.empty_like(order)
        places[order] = torch.arange(order.shape[0])
        return places

    def layer(self, rows: Tensor) -> Tensor:
        scores, ids = functional.linear(rows, self.router).softmax(-1).topk(CHOICES)
        return self.spelled(self, rows, ids, scores)


def merged(m: Experts, x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """transformers' `batched_mm`: tokens and choices in one dimension."""
    chosen, rows = ids.reshape(-1), x.repeat_interleave(CHOICES, dim=0)
    y = torch.bmm(m.up[chosen], rows.unsqueeze(-1)).squeeze(-1) + m.up_bias[chosen]
    y = torch.bmm(m.down[chosen], functional.silu(y).unsqueeze(-1)).squeeze(-1) + m.down_bias[chosen]
    return (y * scores.reshape(-1, 1)).view(-1, CHOICES, x.shape[-1]).sum(1)


def transposed(m: Experts, x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """The same with matrices [in, out], and biases added in place."""
    chosen, rows = ids.reshape(-1), x.repeat_interleave(CHOICES, dim=0)
    y = torch.bmm(rows.unsqueeze(1), m.up.transpose(1, 2)[chosen]).squeeze(1)
    y.add_(m.up_bias[chosen])
    y = torch.bmm(functional.silu(y).unsqueeze(1), m.down.mT[chosen]).squeeze(1)
    y.add_(m.down_bias[chosen])
    return (y * scores.reshape(-1, 1)).view(-1, CHOICES, x.shape[-1]).sum(1)


def apart(m: Experts, x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """Tokens and choices in two dimensions."""
    y = (m.up[ids] @ x[:, None, :, None]).squeeze(-1) + m.up_bias[ids]
    y = (m.down[ids] @ functional.silu(y)[..., None]).squeeze(-1) + m.down_bias[ids]
    return (y * scores[..., None]).sum(1)


def one(m: Experts, x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """The best expert of each token alone."""
    best = ids[:, 0]
    y = torch.bmm(m.up[best], x[..., None]).squeeze(-1) + m.up_bias[best]
    return (torch.bmm(m.down[best], functional.silu(y)[..., None]).squeeze(-1) + m.down_bias[best]) * scores[:, :1]


importlib.import_module("transformers.integrations.moe")  # which registers the grouped product


def grouped(m: Experts, x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """transformers' `grouped_mm`: rows sorted by expert, a product of groups, and rows put back."""
    flat = ids.reshape(-1)
    sorted_ids, order = torch.sort(flat)
    ends = torch.histc(sorted_ids.float(), bins=EXPERTS, min=0, max=EXPERTS - 1).cumsum(0, dtype=torch.int32)
    product = torch.ops.transformers.grouped_mm_fallback
    y = product(x[order // CHOICES], m.up.mT, ends) + m.up_bias[sorted_ids]
    y = product(functional.silu(y), m.down.mT, ends) + m.down_bias[sorted_ids]
    y = y * scores.reshape(-1)[order].unsqueeze(-1)
    return y[m.back(order)].view(-1, CHOICES, x.shape[-1]).sum(1)


def dense(m: Experts, x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """All experts for all tokens, of which the router's scores keep some."""
    kept = torch.zeros(x.shape[0], EXPERTS).scatter(1, ids, scores)
    y = torch.bmm(x.repeat(EXPERTS, 1).view(EXPERTS, -1, x.shape[-1]), m.up.mT) + m.up_bias[:, None]
    y = torch.bmm(functional.silu(y), m.down.mT) + m.down_bias[:, None]
    return (y * kept.T[..., None]).sum(0)


def looped(m: Experts, x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """One expert after the other, each for the tokens that chose it."""
    found = torch.zeros_like(x)
    chosen = functional.one_hot(ids, EXPERTS).permute(2, 1, 0)
    for (expert,) in chosen.sum((-1, -2)).nonzero():
        choice, token = torch.where(chosen[expert])
        y = functional.silu(functional.linear(x[token], m.up[expert], m.up_bias[expert]))
        y = functional.linear(y, m.down[expert], m.down_bias[expert])
        found.index_add_(0, token, y * scores[token, choice, None])
    return found


def split(m: Experts, x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """Rows sorted by expert, split by how many each has, and added at their tokens."""
    order = ids.flatten().sort(0)[1]
    token = order.div(ids.shape[1], rounding_mode="trunc")
    counts = torch.zeros(x.shape[0], EXPERTS).scatter(1, ids, 1).long().sum(0).tolist()

    def product(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        pieces = rows.split(counts, dim=0)
        return torch.cat([functional.linear(each, weight[at], bias[at]) for at, each in enumerate(pieces)], dim=0)

    y = product(functional.silu(product(x[token], m.up, m.up_bias)), m.down, m.down_bias)
    return torch.zeros_like(x).index_add_(0, token, y * scores.flatten()[order][:, None])


def split_once(m: Experts, x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """The same with the best expert of each token alone."""
    return split(m, x, ids[:, :1], scores[:, :1])


SPELLED = {each.__name__: each for each in (merged, transposed, apart, one, grouped, dense, looped, split, split_once)}


def imported(spelled: Callable[[Experts, Tensor, Tensor, Tensor], Tensor]) -> tuple[ir.ModuleOp, dict[str, Tensor]]:
    length = torch.export.Dim("length", min=2, max=64)
    with EveryPlace() if spelled in (looped, split, split_once) else nullcontext():
        program = torch.export.export(
            Experts(spelled), (torch.arange(11)[None],), dynamic_shapes=({1: length},), strict=False
        )
    return import_program(program), program_weights(program)


@pytest.mark.parametrize("name", SPELLED)
def test_experts_are_raised_and_mean_the_same(name: str) -> None:
    module, weights = imported(SPELLED[name])
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    expected = Experts(SPELLED[name])(tokens)
    for each in parse_passes(RAISING):
        run_pipeline(module, [each], PassContext())
        (found,) = ir.evaluate(module, "forward", [tokens], ir.Environment(weights.__getitem__))
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4), each.name
    body = ir.functions(module)["forward"].body
    experts = [each for each in body if isinstance(each, ir.ExpertLinear)]
    assert [each.by_choice for each in experts] == [False, name not in ("one", "split_once")]
    assert all((each.bias is None) == (name == "dense") for each in experts)
    assert not any(isinstance(each, ir.MatMul) for each in body)
    require_incremental(ir.functions(module)["forward"])


def test_sorted_rows_that_are_not_put_back_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted twice, rows are in an order that depends on the whole sequence."""
    monkeypatch.setattr(Experts, "back", staticmethod(lambda order: order))
    module, _ = imported(grouped)
    run_pipeline(module, list(parse_passes(RAISING)), PassContext())
    with pytest.raises(LookAheadError):
        require_incremental(ir.functions(module)["forward"])


def test_canonical_experts_stay() -> None:
    """Raising twice changes nothing."""
    module, _ = imported(merged)
    run_pipeline(module, list(parse_passes(RAISING)), PassContext())
    text = ir.print_ir(module)
    run_pipeline(module, list(parse_passes("unmerge-sequence,raise-experts,canonicalize")), PassContext())
    assert ir.print_ir(module) == text


def test_a_part_of_the_best_experts_is_evaluated_as_well() -> None:
    """Ids without their first row are no row of choices by themselves."""
    text = """
spec.func @forward(%scores: !spec.tensor<[T, 3], f32>) {
  %best = spec.reduce(%scores) {function = "argmax", dims = [1], keep = false} -> !spec.tensor<[T], i64>
  %rest = spec.slice(%best) {dim = 0, start = 1, stop = "T"} -> !spec.tensor<[T-1], i64>
  %across = spec.reshape(%rest) {shape = [1, "T-1"]} -> !spec.tensor<[1, T-1], i64>
  %down = spec.reshape(%rest) {shape = ["T-1", 1]} -> !spec.tensor<[T-1, 1], i64>
  %less = spec.map(%across, %down) {function = "lt"} -> !spec.tensor<[T-1, T-1], i1>
  spec.return(%less)
}"""
    module = ir.parse_ir(text)
    run_pipeline(module, list(parse_passes("ungroup-experts")), PassContext())
    assert "slice" in ir.print_ir(module)
