"""Ranks that share a feed-forward part give the bits of the step, for any number of ranks, and divide its weights."""

import math
from queue import Queue
from threading import Thread

import pytest
import torch

from forerun import ir
from forerun.errors import InvalidOptionError, PassError
from forerun.passes.base import PassContext
from forerun.passes.disaggregate import ATTENTION_PART, FFN_PART, Disaggregate
from forerun.passes.pipeline import run_pass
from forerun.passes.split_outputs import SplitOutputs, columns
from tests.passes.programs import BLOCK
from tests.passes.test_drafts import lowered, step_inputs

FAMILIES = ("llama", "gpt2", "gemma2", "mixtral")
PATIENCE = 60
ATTENTION = 0


class Ranks:
    """Queues between all ranks; rank 0 has the attention part."""

    def __init__(self, count: int) -> None:
        self.queues = {(a, b): Queue() for a in range(count + 1) for b in range(count + 1)}
        self.count = count


class End:
    """One rank's end: pieces of several ranks are put together in their order."""

    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self.rank = ranks, rank
        self.feeding = range(1, ranks.count + 1)

    def others(self, peers: bool) -> range:
        return self.feeding if peers or self.rank == ATTENTION else range(1)

    def send(self, payload: str, value: torch.Tensor, peers: bool = False) -> None:
        for rank in self.others(peers):
            self.ranks.queues[self.rank, rank].put((payload, value.clone()))

    def receive(self, payload: str, peers: bool = False) -> torch.Tensor:
        pieces = []
        for rank in self.others(peers):
            name, value = self.ranks.queues[rank, self.rank].get(timeout=PATIENCE)
            assert name == payload
            pieces.append(value)
        return torch.cat(pieces, -1)


def part(family: str, name: str, *more: SplitOutputs) -> tuple[ir.ModuleOp, PassContext]:
    module, context = lowered(family, fused=False)
    for each in (Disaggregate(part=name), *more):
        run_pass(each, context, module)
    ir.verify(module)
    return module, context


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_together_give_the_bits_of_the_step(family: str, ranks: int) -> None:
    whole, context = lowered(family, fused=False)
    inputs = step_inputs(whole)
    weights = ir.with_derived(whole, context.weights)
    expected = ir.evaluate(whole, "step", inputs, ir.Environment(weights, ir.new_states(whole, 4 * BLOCK)))
    between = Ranks(ranks)
    threads = []
    for rank in range(ranks):
        module, own = part(family, FFN_PART, SplitOutputs(ranks=ranks, rank=rank))
        environment = ir.Environment(ir.with_derived(module, own.weights), channel=End(between, rank + 1))
        threads.append(Thread(target=ir.evaluate, args=(module, "step", [], environment), daemon=True))
    for each in threads:
        each.start()
    module, own = part(family, ATTENTION_PART)
    environment = ir.Environment(
        ir.with_derived(module, own.weights), ir.new_states(module, 4 * BLOCK), channel=End(between, ATTENTION)
    )
    found = ir.evaluate(module, "step", inputs, environment)
    for each in threads:
        each.join(PATIENCE)
        assert not each.is_alive()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # torch's products have other bits in other sizes


@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_divide_the_matrices(family: str) -> None:
    whole, _ = part(family, FFN_PART)
    read = sum(map(ir.numbers_read, [each for each in _body(whole) if isinstance(each, ir.WeightProduct)]))
    shares = []
    for rank in range(2):
        module, _ = part(family, FFN_PART, SplitOutputs(ranks=2, rank=rank))
        products = [each for each in _body(module) if isinstance(each, ir.WeightProduct)]
        shares.append(sum(map(ir.numbers_read, products)))
    assert sum(shares) == read
    assert max(shares) <= math.ceil(0.55 * read)


def _body(module: ir.ModuleOp) -> list[ir.SpecOperation]:
    return ir.functions(module)["step"].body


def test_columns_are_divided_as_numpy_divides_them() -> None:
    assert [columns(10, 4, rank) for rank in range(4)] == [(0, 3), (3, 6), (6, 8), (8, 10)]


def test_a_rank_that_is_not_there_is_refused() -> None:
    module, context = part("llama", FFN_PART)
    with pytest.raises(InvalidOptionError, match="no rank 2 of 2; count from 0"):
        run_pass(SplitOutputs(ranks=2, rank=2), context, module)


def test_a_part_is_divided_once_and_attention_never() -> None:
    module, context = part("llama", FFN_PART, SplitOutputs(ranks=2, rank=0))
    with pytest.raises(InvalidOptionError, match="rank's share already"):
        run_pass(SplitOutputs(ranks=2, rank=1), context, module)
    module, context = part("llama", ATTENTION_PART)
    with pytest.raises(InvalidOptionError, match="no feed-forward part; run disaggregate"):
        run_pass(SplitOutputs(ranks=2, rank=1), context, module)


def test_an_unknown_part_and_kernels_are_refused() -> None:
    module, context = lowered("llama", fused=False)
    with pytest.raises(InvalidOptionError, match="no part 'head'; use attention_part or ffn_part"):
        run_pass(Disaggregate(part="head"), context, module)
    module, context = lowered("llama", fused=True)
    with pytest.raises(PassError, match="in kernels"):
        run_pass(SplitOutputs(), context, module)
