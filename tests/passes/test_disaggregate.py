"""The two parts of a step, side by side, give the step's bits; the cut is the cheapest."""

from collections.abc import Callable
from queue import Queue
from threading import Thread

import pytest
import torch

from forerun import ir
from forerun.errors import UnsupportedOperationError
from forerun.passes.disaggregate import ATTENTION_PART, FFN_PART, Disaggregate, row_bytes
from tests.models import HIDDEN
from tests.passes.programs import BLOCK
from tests.passes.test_drafts import lowered, step_inputs

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2", "bloom", "falcon")
PATIENCE = 60


class Side:
    """One end of a channel of two queues, which checks that payloads come in the order of the other part."""

    def __init__(self, out: Queue[tuple[str, torch.Tensor]], into: Queue[tuple[str, torch.Tensor]]) -> None:
        self.out, self.into = out, into
        self.sent: dict[str, torch.Tensor] = {}

    def send(self, payload: str, value: torch.Tensor, peers: bool = False) -> None:
        self.sent[payload] = value.clone()
        self.out.put((payload, value.clone()))

    def receive(self, payload: str, peers: bool = False) -> torch.Tensor:
        name, value = self.into.get(timeout=PATIENCE)
        assert name == payload
        return value


def side_by_side(
    module: ir.ModuleOp,
    weights: Callable[[str], torch.Tensor],
    states: dict[str, torch.Tensor],
    inputs: list[torch.Tensor],
) -> tuple[list[torch.Tensor], tuple[Side, Side]]:
    """Evaluates both parts, each in a thread of its own."""
    there: Queue[tuple[str, torch.Tensor]] = Queue()
    back: Queue[tuple[str, torch.Tensor]] = Queue()
    sides, threads = (Side(there, back), Side(back, there)), torch.get_num_threads()

    def evaluate_other() -> None:
        torch.set_num_threads(threads)  # of this thread; with another number, products may have other bits
        ir.evaluate(module, FFN_PART, [], ir.Environment(weights, channel=sides[1]))

    other = Thread(target=evaluate_other, daemon=True)
    other.start()
    found = ir.evaluate(module, ATTENTION_PART, inputs, ir.Environment(weights, states, channel=sides[0]))
    other.join(PATIENCE)
    assert not other.is_alive()
    return found, sides


@pytest.mark.parametrize("family", FAMILIES)
def test_both_parts_give_the_bits_of_the_step(family: str) -> None:
    module, context = lowered(family, fused=False)
    Disaggregate().apply(context, module)
    ir.verify(module)
    weights = ir.with_derived(module, context.weights)
    inputs = step_inputs(module)
    expected = ir.evaluate(module, "step", inputs, ir.Environment(weights, ir.new_states(module, 4 * BLOCK)))
    found, sides = side_by_side(module, weights, ir.new_states(module, 4 * BLOCK), inputs)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    rows = len(inputs[0])
    for side, part in zip(sides, (ATTENTION_PART, FFN_PART), strict=True):
        declared = [each for each in ir.functions(module)[part].body if isinstance(each, ir.Send)]
        assert [each.payload for each in declared] == list(side.sent)
        for each, value in zip(declared, side.sent.values(), strict=True):
            assert value.nbytes == row_bytes(each.value) * rows


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_sends_one_row_of_the_stream_there_and_one_back(family: str) -> None:
    """Norms and sums stay on the side where they save traffic, and each part has its own weights alone."""
    module, context = lowered(family, fused=False)
    Disaggregate().apply(context, module)
    attention, ffn = (ir.functions(module)[name] for name in (ATTENTION_PART, FFN_PART))
    for part in (attention, ffn):
        sends = [each for each in part.body if isinstance(each, ir.Send)]
        assert [row_bytes(each.value) for each in sends] == [4 * HIDDEN] * 2
    assert not any(each.reads or each.writes for each in ffn.body if not isinstance(each, ir.Receive))
    matrices = [
        {each.weight.owner.symbol for each in part.body if isinstance(each, ir.WeightProduct)}  # type: ignore[union-attr]
        for part in (attention, ffn)
    ]
    assert matrices[0]
    assert matrices[1]
    assert not matrices[0] & matrices[1]


def test_a_model_without_a_stream_is_refused() -> None:
    module, context = lowered("llama", fused=False)
    step = ir.functions(module)["step"]
    last = step.block.last_op
    assert isinstance(last, ir.Return)
    tokens = step.argument("tokens")
    build = ir.Builder(ir.InsertPoint.before(last))
    build.emit(ir.Return.make(build.cast(tokens, "f32")))
    ir.Rewriter.erase_op(last)
    with pytest.raises(UnsupportedOperationError, match="no feed-forward part beside its attentions"):
        Disaggregate().apply(context, module)
