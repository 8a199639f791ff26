"""Every pass leaves verifying IR that means the same: @forward before and after, and @step against @forward."""

import pytest
import torch

from forerun import ir
from forerun.passes.base import Pass, PassContext
from forerun.passes.pipeline import run_pipeline, step_pipeline
from tests.passes.programs import BLOCK, LENGTH, Program, Row, Stepper, program, texts

CHOSEN = ["llama", "qwen3", "gemma3_text", "gemma2", "gpt2", "gpt_neox", "bloom", "phi3", "mpt", "mixtral", "glm4_moe"]
PROMPT = 13  # longer than the models' windows, and not a multiple of a block


def close(result: torch.Tensor, expected: torch.Tensor, where: str) -> None:
    assert torch.allclose(result, expected, rtol=1e-4, atol=2e-4), f"{where}: {(result - expected).abs().max()}"


class Reference:
    """@forward as imported; its logits are remembered for every text and all its prefixes."""

    def __init__(self, imported: Program) -> None:
        self.imported = imported
        self.known: dict[tuple[int, ...], torch.Tensor] = {}

    def logits(self, rows: list[Row]) -> torch.Tensor:
        for row in sorted(rows, key=lambda row: -len(row.text)):
            if row.text not in self.known:
                logits = self.imported.logits(row.text)
                for count in range(1, len(row.text) + 1):
                    self.known.setdefault(row.text[:count], logits[count - 1])
        return torch.stack([self.known[row.text] for row in rows])


def check_step(reference: Reference, changed: Program, where: str) -> None:
    prompts = texts(1, 2, PROMPT)
    stepper = Stepper(changed, sequences=2, seed=2)
    rows = stepper.prefill(prompts, seed=3)
    if stepper.takes_paths:
        rows += stepper.tree(prompts, seed=4)
    expected = reference.logits([row for row, _ in rows])
    close(torch.stack([logits for _, logits in rows]), expected, where)


@pytest.mark.parametrize("family", [*CHOSEN, "llama decomposed", "gemma2 decomposed", "gpt2 decomposed"])
def test_passes_keep_the_meaning(family: str) -> None:
    name, _, how = family.partition(" ")
    reference, changed = Reference(program(name)), program(name, bool(how))
    (text,) = texts(0, 1, PROMPT)
    expected = reference.imported.logits(text)
    context = PassContext(changed.weights.__getitem__, max_length=LENGTH)
    before: dict[str, str] = {}
    for index, each in enumerate(step_pipeline(max_rows=64, max_outputs=16, block=BLOCK, candidates=4)):
        each.apply(context, changed.module)
        ir.verify(changed.module)
        where = f"{family}, pass {index} {each.name}"
        after = {name: ir.print_ir(function) for name, function in ir.functions(changed.module).items()}
        if after["forward"] != before.get("forward"):
            close(changed.logits(text), expected, where)
        if after.get("step") != before.get("step"):
            check_step(reference, changed, where)
        before = after


def raising_passes() -> list[Pass]:
    passes = step_pipeline(max_rows=64, max_outputs=16, block=BLOCK, candidates=4)
    return passes[: [each.name for each in passes].index("sequence-axis")]


RAISED = (ir.Attention, ir.Linear, ir.RMSNorm, ir.LayerNorm, ir.Rotary, ir.Softmax, ir.MatMul)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "phi3", "mpt"])
def test_a_decomposed_program_is_raised_to_the_same_operations(family: str) -> None:
    counts: list[dict[type[ir.SpecOperation], int]] = []
    for decomposed in (False, True):
        module = program(family, decomposed).module
        run_pipeline(module, raising_passes(), PassContext(max_length=LENGTH))
        body = ir.functions(module)["forward"].body
        counts.append({kind: sum(isinstance(each, kind) for each in body) for kind in RAISED})
    assert counts[1] == counts[0]


@pytest.mark.parametrize("family", CHOSEN)
def test_the_text_of_a_planned_step_is_the_step(family: str) -> None:
    """What forerun-opt would read back from a dump: the same text, and the same logits."""
    changed = program(family)
    context = PassContext(changed.weights.__getitem__, max_length=LENGTH)
    for each in step_pipeline(max_rows=64, max_outputs=16, block=BLOCK, candidates=4):
        each.apply(context, changed.module)
    text = ir.print_ir(changed.module)
    for generic in (False, True):
        again = Program(ir.parse_ir(ir.print_ir(changed.module, generic)), changed.weights)
        ir.verify(again.module)
        assert ir.print_ir(again.module) == text
    (prompt,) = texts(5, 1, 9)
    rows = [Row(0, tuple(prompt[: at + 1]), ()) for at in range(len(prompt))]
    first, second = (Stepper(each, sequences=1, seed=0).run(rows) for each in (changed, again))
    assert torch.equal(first, second)


def test_raised_programs_hold_the_decoders_operations() -> None:
    changed = program("llama")
    context = PassContext(changed.weights.__getitem__, max_length=LENGTH)
    for each in raising_passes():
        each.apply(context, changed.module)
    kinds = [type(each) for each in ir.functions(changed.module)["forward"].body]
    layers = 2
    counted = {kind: kinds.count(kind) for kind in (ir.RMSNorm, ir.Rotary, ir.Attention, ir.Linear)}
    assert counted == {
        ir.RMSNorm: 2 * layers + 1,
        ir.Rotary: 2 * layers,
        ir.Attention: layers,
        ir.Linear: 7 * layers + 1,
    }
