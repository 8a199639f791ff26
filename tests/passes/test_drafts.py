"""A derived draft means what the same part of the step means; resuming after a draft gives the step."""

import numpy as np
import pytest
import torch

from forerun import ir
from forerun.passes.base import PassContext
from forerun.passes.early_exit import EarlyExit
from forerun.passes.parallel_layers import ParallelLayers, group_inputs
from forerun.passes.pipeline import step_pipeline
from forerun.passes.residual import residual
from forerun.passes.reuse_kv_cache import ReuseKVCache
from forerun.passes.skip_layers import SkipLayers
from forerun.runtime.executable import Part, Rows
from tests.compiled import reference_step
from tests.passes.programs import BLOCK, LENGTH, program

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2", "bloom")
ROWS = 5


def lowered(family: str, fused: bool) -> tuple[ir.ModuleOp, PassContext]:
    """The module before its kernels are formed, or after all passes."""
    changed = program(family)
    context = PassContext(changed.weights.__getitem__, max_length=LENGTH)
    passes = step_pipeline(max_rows=16, max_outputs=8, block=BLOCK, candidates=4)
    end = len(passes) if fused else [each.name for each in passes].index("fuse-kernels")
    for each in passes[:end]:
        each.apply(context, changed.module)
    ir.verify(changed.module)
    return changed.module, context


def rows() -> Rows:
    """One prompt at home, with all of its logits wanted."""
    positions = np.arange(ROWS, dtype=np.int32)
    return Rows(
        tokens=np.array([5, 9, 2, 7, 11], np.int32),
        positions=positions,
        sequences=np.zeros(ROWS, np.int32),
        slots=positions,
        bases=positions + 1,
        paths=np.zeros((ROWS, 1), np.int32),
        block_tables=np.arange(4, dtype=np.int32)[None],
        outputs=positions,
    )


def step_inputs(module: ir.ModuleOp) -> list[torch.Tensor]:
    arguments = ir.functions(module)["step"].signature.arguments
    return [torch.from_numpy(getattr(rows(), each.name)) for each in arguments]


def evaluated(module: ir.ModuleOp, context: PassContext, name: str, *more: torch.Tensor) -> list[torch.Tensor]:
    inputs = step_inputs(module)
    weights = ir.with_derived(module, context.weights)
    environment = ir.Environment(weights, ir.new_states(module, 4 * BLOCK))
    return ir.evaluate(module, name, [*inputs, *more], environment)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_is_the_part_of_the_step(family: str) -> None:
    planned, context = lowered(family, fused=True)
    executable = reference_step(
        planned, ir.with_derived(planned, context.weights), max_rows=16, max_outputs=8, max_path=8, max_length=LENGTH
    )
    count = len(executable.branches)
    for skipped in ({0}, {count - 1}, set(range(0, count, 2))):
        module, context = lowered(family, fused=False)
        SkipLayers(tuple(skipped)).apply(context, module)
        ir.verify(module)
        logits = evaluated(module, context, "draft")[0].numpy()
        part = executable.run(Part(skipped=frozenset(skipped)), executable.new_state(4), rows())
        assert np.array_equal(logits.reshape(part.logits.shape).view(np.uint32), part.logits.view(np.uint32))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_with_parallel_layers_is_the_part_of_the_step(family: str) -> None:
    """Two rules say which branches read which value, the pass's and the runtime's: they agree."""
    planned, context = lowered(family, fused=True)
    executable = reference_step(
        planned, ir.with_derived(planned, context.weights), max_rows=16, max_outputs=8, max_path=8, max_length=LENGTH
    )
    whole = executable.run(Part(), executable.new_state(4), rows()).logits.copy()
    for layers in (1, 2, 3):
        module, context = lowered(family, fused=False)
        found = residual(ir.functions(module)["step"]).branches
        part = Part(parallel=layers)
        assert group_inputs(found, layers) == part.inputs([(each.layer, each.kind) for each in found])
        ParallelLayers(layers).apply(context, module)
        ir.verify(module)
        logits = evaluated(module, context, "draft")[0].numpy()
        ours = executable.run(part, executable.new_state(4), rows()).logits
        assert np.array_equal(logits.reshape(ours.shape).view(np.uint32), ours.view(np.uint32))
        assert np.array_equal(ours, whole) == (layers == 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_shares_the_first_branch_with_a_draft_of_parallel_layers(family: str) -> None:
    """It could share some more, up to the second attention; `Part.shared` is careful."""
    module, context = lowered(family, fused=False)
    count = len(residual(ir.functions(module)["step"]).branches)
    ParallelLayers(2).apply(context, module)
    ReuseKVCache().apply(context, module)
    assert Part(parallel=2).shared(count) == 1
    assert f"they diverge in branch {2 if count == 4 else 1} (layer 1" in context.notes[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_resuming_after_an_early_exit_is_the_step(family: str) -> None:
    module, context = lowered(family, fused=False)
    expected = evaluated(module, context, "step")
    stream = residual(ir.functions(module)["step"])
    EarlyExit(layers=1).apply(context, module)
    ReuseKVCache().apply(context, module)
    ir.verify(module)
    resume = ir.functions(module)["resume"]
    step = ir.functions(module)["step"]
    (hidden,) = resume.block.args[len(step.block.args) :]
    exit_value = stream.stream[sum(each.layer < 1 for each in stream.branches)]
    inputs = step_inputs(module)
    environment = ir.Environment(ir.with_derived(module, context.weights), ir.new_states(module, 4 * BLOCK))
    writes = [each for each in ir.functions(module)["draft"].body if isinstance(each, ir.StateWrite)]
    assert len(writes) == 2
    ir.evaluate(module, "draft", inputs, environment)  # writes the keys and values that the slice below reads
    values, inner = ir.called(module, step, inputs, environment)
    ir.run_body(ir.backward_slice(exit_value), values, inner, keep={exit_value})
    found = ir.evaluate(module, "resume", [*inputs, values[exit_value].reshape(hidden_sizes(hidden))], environment)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def hidden_sizes(value: ir.SSAValue) -> list[int]:
    return ir.tensor_type(value).sizes({"N": ROWS})


def test_a_skipped_first_branch_leaves_nothing_to_reuse() -> None:
    module, context = lowered("llama", fused=False)
    SkipLayers((0,)).apply(context, module)
    ReuseKVCache().apply(context, module)
    assert "resume" not in ir.functions(module)
    assert (
        "@step can use nothing that @draft computes; they diverge in branch 0 (layer 0, attention)" in context.notes[-1]
    )


def test_the_note_names_the_branch_in_which_a_draft_leaves_the_step() -> None:
    for draft, named in (
        (EarlyExit(layers=1), "branch 2 (layer 1, attention)"),
        (SkipLayers((1, 2)), "branch 1 (layer 0, feed-forward)"),
    ):
        module, context = lowered("llama", fused=False)
        draft.apply(context, module)
        ReuseKVCache().apply(context, module)
        assert f"they diverge in {named}" in context.notes[-1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_the_runtime_enters_a_step_where_the_pass_says(family: str, seed: int) -> None:
    """`Part.shared` is a rule; the pass compares structure. They agree on every skip set."""
    module, context = lowered(family, fused=False)
    found = residual(ir.functions(module)["step"])
    random = np.random.default_rng(seed)
    skipped = frozenset(np.flatnonzero(random.random(len(found.branches)) < 0.4).tolist()) or frozenset({1})
    shared = Part(skipped=skipped).shared(len(found.branches))
    behind = [each for branch in found.branches[shared:] for each in branch.operations if isinstance(each, ir.Linear)]
    inside = {each for branch in found.branches for each in branch.operations}
    step = ir.functions(module)["step"]
    head = [each for each in step.body if isinstance(each, ir.Linear) and each not in inside]
    SkipLayers(tuple(skipped)).apply(context, module)
    ReuseKVCache().apply(context, module)
    if not any(isinstance(each, ir.Linear) for branch in found.branches[:shared] for each in branch.operations):
        assert "resume" not in ir.functions(module)
        return
    left = [each for each in ir.functions(module)["resume"].body if isinstance(each, ir.Linear)]
    assert len(left) == len(behind) + len(head)
