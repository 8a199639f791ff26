"""Imported programs of tiny models, and rows for their steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch._decomp import core_aten_decompositions, get_decompositions

from forerun import ir
from forerun.frontends.huggingface import prefer_traceable
from forerun.frontends.torch_export import import_program
from forerun.frontends.tracing import TokenLogits, trace_module
from forerun.frontends.weights import program_weights
from tests.models import FAMILIES, VOCABULARY

LENGTH = 32
"""Positions that the programs are compiled for."""
BLOCK = 4


@dataclass(frozen=True)
class Program:
    module: ir.ModuleOp
    weights: dict[str, torch.Tensor]

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """@forward of a text: [T, V]."""
        environment = ir.Environment(ir.with_derived(self.module, self.weights.__getitem__))
        (logits,) = ir.evaluate(self.module, "forward", [torch.tensor([list(tokens)])], environment)
        return logits[0]


def spelled_out(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with attention, softmax, linear layers and layer norms decomposed to the operators of core ATen."""
    aten = torch.ops.aten
    composed = [aten.scaled_dot_product_attention, aten._softmax, aten.native_layer_norm, aten.addmm]
    return program.run_decompositions(core_aten_decompositions() | get_decompositions(composed))


@cache
def _imported(family: str, decomposed: bool) -> Program:
    model = FAMILIES[family]()
    prefer_traceable(model)
    program = trace_module(TokenLogits(model), family, LENGTH)
    program = spelled_out(program) if decomposed else program
    module = import_program(program)
    ir.verify(module)
    return Program(module, program_weights(program))


def program(family: str, decomposed: bool = False) -> Program:
    """A fresh copy of a family's program: passes change it in place."""
    imported = _imported(family, decomposed)
    return Program(imported.module.clone(), imported.weights)


def texts(seed: int, count: int, length: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (count, length)).tolist()


@dataclass(frozen=True)
class Row:
    """One row of a step: its text ends with its token; the last `len(slots)` tokens are its path."""

    sequence: int
    text: tuple[int, ...]
    slots: tuple[int, ...]

    @property
    def base(self) -> int:
        return len(self.text) - len(self.slots)


class Stepper:
    """Runs @step of a program over a cache, in whichever form the passes so far have left it."""

    def __init__(self, program: Program, sequences: int, seed: int) -> None:
        self.program = program
        self.step = ir.functions(program.module)["step"]
        per_sequence = -(-LENGTH // BLOCK)
        blocks = sequences * per_sequence + 16
        order = np.random.default_rng(seed).permutation(blocks)
        self.tables = order[: sequences * per_sequence].reshape(sequences, per_sequence)
        self.loose = (order[sequences * per_sequence :, None] * BLOCK + np.arange(BLOCK)).ravel().tolist()
        self.weights = ir.with_derived(program.module, program.weights.__getitem__)
        self.states = ir.new_states(program.module, blocks * BLOCK)

    @property
    def takes_paths(self) -> bool:
        return "paths" in [each.name_hint for each in self.step.block.args]

    def slot(self, sequence: int, position: int) -> int:
        return int(self.tables[sequence, position // BLOCK]) * BLOCK + position % BLOCK

    def run(self, rows: Sequence[Row]) -> torch.Tensor:
        """The logits of every row."""
        environment = ir.Environment(self.weights, self.states)
        return ir.evaluate(self.program.module, "step", self.inputs(rows), environment)[0]

    def inputs(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """The arguments of @step for these rows."""
        depth = max(1, *(len(row.slots) for row in rows))
        positions = [len(row.text) - 1 for row in rows]
        own = [row.slots[-1] if row.slots else self.slot(row.sequence, len(row.text) - 1) for row in rows]
        given = {
            "tokens": [row.text[-1] for row in rows],
            "positions": positions,
            "sequences": [row.sequence for row in rows],
            "slots": own,
            "bases": [row.base for row in rows],
            "paths": [[*row.slots, *[0] * (depth - len(row.slots))] for row in rows],
            "block_tables": self.tables.tolist(),
            "outputs": list(range(len(rows))),
        }
        return [torch.tensor(given[each.name_hint or ""], dtype=torch.int32) for each in self.step.block.args]

    def prefill(self, prompts: Sequence[Sequence[int]], seed: int) -> list[tuple[Row, torch.Tensor]]:
        """Commits prompts in random chunks, mixing the sequences' rows; returns every row with its logits."""
        random = np.random.default_rng(seed)
        done, results = [0] * len(prompts), list[tuple[Row, torch.Tensor]]()
        while any(count < len(prompt) for count, prompt in zip(done, prompts, strict=True)):
            rows: list[Row] = []
            for sequence, prompt in enumerate(prompts):
                stop = min(len(prompt), done[sequence] + int(random.integers(3, 9)))
                rows += [Row(sequence, tuple(prompt[: at + 1]), ()) for at in range(done[sequence], stop)]
                done[sequence] = stop
            rows = [rows[at] for at in random.permutation(len(rows))]
            results += zip(rows, self.run(rows), strict=True)
        return results

    def tree(self, prompts: Sequence[Sequence[int]], seed: int, size: int = 5) -> list[tuple[Row, torch.Tensor]]:
        """A random tree after every prompt, at random slots, with its rows in random order."""
        random = np.random.default_rng(seed)
        loose = list(random.permutation(self.loose))
        rows: list[Row] = []
        for sequence, prompt in enumerate(prompts):
            nodes: list[Row] = []
            for node in range(size):
                parent = nodes[int(random.integers(0, node))] if node else Row(sequence, tuple(prompt), ())
                token = int(random.integers(0, VOCABULARY))
                nodes.append(Row(sequence, (*parent.text, token), (*parent.slots, int(loose.pop()))))
            rows += nodes
        rows = [rows[at] for at in random.permutation(len(rows))]
        return list(zip(rows, self.run(rows), strict=True))
