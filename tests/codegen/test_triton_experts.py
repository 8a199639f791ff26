"""Products with experts in Triton's interpreter: their meaning, and the same bits whoever shares an expert."""

import math

import numpy as np
import pytest
from test_tvm_elementwise import indices
from test_tvm_experts import CHOICES, expert_step
from triton_steps import evaluate, interpreted, poisoned_state

from forerun import ir
from forerun.execute.triton.compilation import compile_step
from forerun.runtime.executable import WHOLE


@pytest.mark.parametrize(("features", "outputs", "storage"), [(70, 50, None), (33, 16, "bf16"), (64, 97, "f16")])
def test_products_mean_what_the_interpreter_says(features, outputs, storage):
    module, weights = expert_step(features, outputs, storage)
    weights = {name: ir.as_stored(module, weights.__getitem__)(name) for name in weights}
    results, meaning = evaluate(module, weights, indices(37))
    tolerance = {"rtol": 1e-4, "atol": 1e-3} if storage is None else {"rtol": 0.05, "atol": 0.3}  # x is rounded too
    for result, close in zip(results, meaning, strict=True):
        np.testing.assert_allclose(result, close, **tolerance)


def test_bits_do_not_depend_on_who_shares_an_expert():
    module, weights = expert_step(70, 50)
    executable = interpreted(module, weights.__getitem__)
    found = {}
    for count in (37, 1, 5, 20):
        executable.launcher.arena.fill_(math.nan)
        result = executable.run(WHOLE, poisoned_state(executable), indices(count))
        assert result.logits is not None  # the first value, which is computed on demand
        sizes = {"N": count, "M": count}
        found[count] = [executable.launcher.value(each, sizes).copy() for each in executable.step.returned]
    for count, results in found.items():
        for result, whole in zip(results, found[37], strict=True):
            assert result.shape[:2] == (count, CHOICES)
            assert np.array_equal(result, whole[:count]), count


def test_kernels_compile_without_spills():
    module, weights = expert_step(256, 512, "bf16")
    step = interpreted(module, weights.__getitem__).step
    found = list(compile_step(step, step.sources, (32,), [90]))
    assert {"grouped", "experts"} <= {step.sources[each.kernel.partition(",")[0]].kind for each in found}
    assert not [f"{each.kernel} {each.config}" for each in found if each.stack]
