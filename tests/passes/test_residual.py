"""The residual stream of each family, from its graph alone."""

from collections import Counter

import pytest

from forerun import ir
from forerun.passes.base import PassContext
from forerun.passes.pipeline import step_pipeline
from forerun.passes.residual import residual
from tests.models import FAMILIES, LAYERS
from tests.passes.programs import BLOCK, LENGTH, program

PARALLEL = {"gpt_neox", "gptj", "falcon", "phi", "cohere", "cohere2", "codegen"}


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_of_every_family(family: str) -> None:
    changed = program(family)
    context = PassContext(changed.weights.__getitem__, max_length=LENGTH)
    passes = step_pipeline(max_rows=16, max_outputs=8, block=BLOCK, candidates=4)
    for each in passes[: [each.name for each in passes].index("fuse-kernels")]:
        each.apply(context, changed.module)
    step = ir.functions(changed.module)["step"]
    found = residual(step)
    kinds = Counter(each.kind for each in found.branches)
    expected = {"layer": LAYERS} if family in PARALLEL else {"attention": LAYERS, "feed_forward": LAYERS}
    assert kinds == expected
    assert [each.layer for each in found.branches] == sorted(each.layer for each in found.branches)
    assert len(found.stream) == len(found.branches) + 1
    attentions = [each for each in step.body if isinstance(each, ir.TreeAttention)]
    for attention in attentions:
        assert sum(attention in each.operations for each in found.branches) == 1
