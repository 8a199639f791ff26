"""A part of a step stands alone: it has its own weights, and targets that cannot exchange messages refuse it."""

import numpy as np
import pytest

from forerun.build import generate_code, lower
from forerun.codegen.backends import BACKENDS
from forerun.distributed import Layout
from forerun.distributed.joining import part_passes
from forerun.errors import ForerunError, InvalidOptionError
from forerun.execute.tvm.executable import TvmExecutable
from forerun.passes.disaggregate import FFN_PART, Disaggregate
from forerun.progress import SilentProgress
from forerun.runtime.engine import Engine
from tests.models import FAMILIES

PROGRESS = SilentProgress()


def compiled(layout: Layout | None, rank: int = 0, family: str = "llama") -> TvmExecutable:
    passes = [] if layout is None else part_passes(layout, rank)
    found = generate_code(lower(FAMILIES[family](), draft=passes, progress=PROGRESS), "cpu", PROGRESS)
    assert isinstance(found, TvmExecutable)
    return found


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_ranks_divide_the_weights(family: str) -> None:
    """Packing rounds each matrix up to whole blocks, so the parts have a little more than the whole."""
    layout = Layout(1, 2)
    whole = compiled(None, family=family).weight_bytes
    parts = [compiled(layout, rank, family).weight_bytes for rank in range(layout.world)]
    assert whole <= sum(parts) <= 1.3 * whole
    assert max(parts) < 0.8 * whole


@pytest.mark.parametrize("target", ["c", "reference", "onnx"])
def test_other_targets_refuse_a_part(target: str) -> None:
    fused = BACKENDS[target].fused
    lowered = lower(FAMILIES["llama"](), draft=[Disaggregate(FFN_PART)], progress=PROGRESS, fused=fused)
    with pytest.raises(ForerunError, match=r"part of one: compile it for the cpu target|which are not exported"):
        generate_code(lowered, target, PROGRESS)


def test_a_part_does_not_run_alone() -> None:
    executable = compiled(Layout(1, 1))
    engine = Engine(executable)
    with (
        engine.serving,
        engine.sequence(8) as sequence,
        pytest.raises(InvalidOptionError, match="this step is a part of one, which exchanges"),
    ):
        engine.prefill(sequence, np.array([5, 6, 7], np.int32))
