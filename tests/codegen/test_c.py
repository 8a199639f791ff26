"""The C back end is tested against the IR's interpreter, under the contract and on the real model."""

import shutil

import numpy as np
import pytest
import torch
from steps import ATTENTIONS, LENGTH, ROW_TYPES, attention_step, decoder, prompt_rows, tree_rows

import forerun
from forerun import ir
from forerun.build import lower
from forerun.codegen.c.lowering import emit
from forerun.codegen.planned import PlannedStep, StepLimits
from forerun.errors import ForerunError
from forerun.execute.c import executable as c_executable
from forerun.execute.c.executable import CExecutable, bind
from forerun.frontends.demo import demo_model
from forerun.runtime.certify import certify
from forerun.runtime.executable import WHOLE
from tests.models import FAMILIES

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")

LIMITS = StepLimits(max_rows=64, max_outputs=64, max_path=64, max_length=256)


def compiled(module: ir.ModuleOp, weights: dict[str, torch.Tensor]) -> CExecutable:
    return bind(emit(PlannedStep(module, weights.__getitem__, LIMITS)))


def expected(module, weights, rows, states=None):
    environment = ir.Environment(weights.__getitem__, states or ir.new_states(module, 16 * 16))
    inputs = [torch.from_numpy(getattr(rows, name)) for name in ROW_TYPES]
    return ir.evaluate(module, "step", inputs, environment)[0].numpy()


def test_a_step_is_the_interpreters():
    module, weights = decoder()
    executable = compiled(module, weights)
    executable.memory.arena.fill(np.nan)
    rows = prompt_rows(np.random.default_rng(0).integers(0, 331, 37), 0, [3, 1, 7])
    found = executable.run(WHOLE, executable.new_state(16), rows)
    assert np.allclose(found.logits, expected(module, weights, rows), atol=2e-5)
    order = np.argsort(-found.logits, axis=1, kind="stable")[:, : found.candidates.shape[1]]
    assert np.array_equal(found.candidates, order)


@pytest.mark.parametrize(("heads", "groups", "key_dim", "value_dim", "options"), ATTENTIONS)
def test_tree_attention_matches_the_interpreter(heads, groups, key_dim, value_dim, options):
    module, weights = attention_step(heads, groups, key_dim, value_dim, options)
    generator = np.random.default_rng(heads)
    table = [5, 2, 9, 0, 7]
    prompt = prompt_rows(generator.integers(0, LENGTH, 53), 0, table)
    tree = tree_rows(generator, table, 53, 17, 10 * 16)
    executable = compiled(module, weights)
    state, states = executable.new_state(16), ir.new_states(module, 16 * 16)
    for rows in (prompt, tree):
        executable.memory.arena.fill(np.nan)
        found = executable.run(WHOLE, state, rows).logits
        np.testing.assert_allclose(found, expected(module, weights, rows, states), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_the_contract_holds(family):
    lowered = lower(FAMILIES[family](), max_length=128)
    limits = StepLimits(max_rows=64, max_outputs=64, max_path=64, max_length=128)
    report = certify(bind(emit(PlannedStep(lowered.module, lowered.weights, limits))), cases=4)
    assert report.exact, str(report)


def test_tokens_of_the_real_model_are_the_cpus():
    """And so transformers' (`tests/exactness/test_real_model.py`)."""
    model = forerun.compile(demo_model(), strategy="autoregressive", target="c", max_length=64)
    plain = forerun.compile(demo_model(), strategy="autoregressive", target="cpu", max_length=64)
    prompt = model.tokenizer.encode("The capital of France is")
    found = model.generate(prompt, max_new_tokens=4)
    assert found.token_ids == plain.generate(prompt, max_new_tokens=4).token_ids


def test_no_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ForerunError, match=r"^the c target needs a C compiler: install gcc or clang"):
        c_executable.compiler()


def test_the_file_is_read_like_a_table_of_contents():
    module, weights = decoder()
    text = emit(PlannedStep(module, weights.__getitem__, LIMITS)).text
    entry = text[text.index("void entry_step(") :]
    calls = [line.split("(")[0].strip() for line in entry.splitlines() if line.startswith("  linear_1")]
    assert calls[:3] == ["linear_1_row", "linear_1_product", "linear_1_row_2"]
    assert calls.count("linear_1_product") == 2, "both layers run the same code"
    assert "/* The error function" not in text, "a file holds what it calls alone"
