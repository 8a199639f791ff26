"""Every operation of a step is in exactly one kernel, in an order that respects values and caches."""

from collections import Counter
from collections.abc import Iterable
from functools import cache

import pytest

from forerun import ir
from forerun.passes.base import PassContext
from forerun.passes.fuse_kernels import FuseKernels, inline
from forerun.passes.pipeline import step_pipeline
from tests.ir.build import function, tensor
from tests.passes.programs import BLOCK, LENGTH, program

FAMILIES = ["llama", "gemma2", "gpt2", "gpt_neox", "bloom"]


@cache
def fused(family: str) -> tuple[ir.Function, ir.Function]:
    """@step before and after the pass."""
    changed = program(family)
    context = PassContext(changed.weights.__getitem__, max_length=LENGTH)
    passes = step_pipeline(max_rows=16, max_outputs=8, block=BLOCK, candidates=4)
    at = [each.name for each in passes].index("fuse-kernels")
    for each in passes[:at]:
        each.apply(context, changed.module)
    before = changed.module.clone()
    passes[at].apply(context, changed.module)
    ir.verify(changed.module)
    return ir.functions(before)["step"], ir.functions(changed.module)["step"]


def computed(operations: Iterable[ir.SpecOperation]) -> Counter[str]:
    """The operations that cost something, by kind."""
    return Counter(
        f"{each.name} {sorted((name, str(value)) for name, value in each.properties.items())}"
        for each in operations
        if not isinstance(each, ir.Kernel) and not each.ends_body and not inline(each)
    )


def kernels(step: ir.Function) -> list[ir.Kernel]:
    return [each for each in step.body if isinstance(each, ir.Kernel)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_kernels_and_nothing_else(family: str) -> None:
    _, after = fused(family)
    assert {type(each) for each in after.body} == {ir.Kernel, ir.Return}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_operation_is_in_exactly_one_kernel(family: str) -> None:
    before, after = fused(family)
    assert computed(ir.walk(after.body)) == computed(before.body)


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_keep_their_order_within_a_kernel(family: str) -> None:
    for kernel in kernels(fused(family)[1]):
        known = set(kernel.regions[0].block.args)
        for each in kernel.body:
            assert set(each.operands) <= known
            known.update(each.results)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_is_written_before_it_is_read(family: str) -> None:
    writes: dict[str, int] = {}
    reads: dict[str, int] = {}
    for index, kernel in enumerate(kernels(fused(family)[1])):
        for each in kernel.body:
            writes.update(dict.fromkeys(each.writes, index))
            reads.update(dict.fromkeys(each.reads, index))
    assert writes.keys() == reads.keys() != set()
    assert all(writes[each] < reads[each] for each in reads)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_stands_alone_and_candidates_are_chosen_where_the_logits_are_computed(family: str) -> None:
    for kernel in kernels(fused(family)[1]):
        heavy = [type(each) for each in kernel.body if isinstance(each, ir.TreeAttention | ir.TopK | ir.Linear)]
        match kernel.kind:
            case "attention":
                assert heavy == [ir.TreeAttention]
            case "head":
                assert heavy == [ir.Linear, ir.TopK]
                assert kernel.branch is None
            case "linear":
                assert set(heavy) == {ir.Linear}
                assert len({each.x for each in kernel.body if isinstance(each, ir.Linear)}) == 1
            case other:
                assert other == "row_wise"
                assert heavy == []


def test_a_llama_layer_is_five_kernels() -> None:
    """Norm + q, k, v + rotary + cache write; attention; output; norm + gate, up; down."""
    counts = Counter(each.kind for each in kernels(fused("llama")[1]))
    layers = 2
    assert counts["attention"] == layers
    assert counts["linear"] == 4 * layers
    assert counts["head"] == 1
    assert counts["topk"] == 0


def test_candidates_of_what_no_linear_gives_are_a_kernel_of_their_own() -> None:
    table, tokens = tensor([5, 9]), tensor(["N"], "i32")

    def body(build: ir.Builder, table: ir.SSAValue, tokens: ir.SSAValue) -> ir.SSAValue:
        return build.emit(ir.TopK.make(build.add(ir.Gather, table, tokens), k=2, index_dtype="i32")).results[1]

    module = function({"table": table, "tokens": tokens}, body, "step")
    FuseKernels().apply(PassContext(), module)
    assert [each.kind for each in kernels(ir.functions(module)["step"])] == ["row_wise", "topk"]
