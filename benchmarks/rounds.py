"""How long are the paths accepted on the device, compared with those that the host drafts with as many rows?

python -m benchmarks.rounds --prompts specbench.jsonl

It needs no GPU: the loop's kernels run in Triton's interpreter, and the model's steps on the CPU back end. Texts are
compared with plain decoding's. Its times are meaningless.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.common import arguments, model_path, print_table, progress, read_prompts
from forerun.compiler import compile as compile_model
from forerun.execute.triton.loop import TritonLoop
from forerun.execute.triton.loop_calls import Size
from forerun.execute.triton.memory import InputLayout, State, new_state
from forerun.runtime.cache import CachedSequence
from forerun.runtime.device_loop import LARGEST, Drafting, OnDevice
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Rows
from forerun.runtime.request import Request
from forerun.runtime.round_size import SameSize
from forerun.schedules import with_strategy
from forerun.storage import write_atomically
from forerun.strategies import Fixed, TreeSpec

ROWS = (8, 16, 32)


class Stand(SimpleNamespace):
    """The executable around which the loop's kernels run; another executable runs its steps."""

    def layout(self, rows: int, outputs: int) -> InputLayout:
        return InputLayout(rows, outputs, self.step.max_path, self.step.tables)

    def place(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def launch_step(self, state: State, layout: InputLayout, inputs: torch.Tensor) -> None:
        count = int(inputs[0])
        if count == 0:
            return
        named = {
            name: inputs[layout.places[name] :][:count].numpy().copy()
            for name in ("tokens", "positions", "sequences", "slots", "bases", "outputs")
        }
        paths = inputs[layout.places["paths"] :][: count * layout.path].numpy().reshape(count, layout.path)
        width = max(1, int((named["positions"] - named["bases"]).max()) + 1)
        rows = Rows(**named, paths=paths[:, :width].copy(), block_tables=self.blocks[None])
        result = self.engine.run(rows)
        _, ids, logits = self.step.returned
        ids[:count] = torch.from_numpy(result.candidates)
        logits[:count] = torch.from_numpy(result.candidate_logits)


class StandLoop(TritonLoop):
    """A loop whose steps, and moves of cached slots, are run by another executable."""

    def begin(self, sequence: CachedSequence, *given: Any) -> None:
        vars(self.launcher)["blocks"] = sequence.blocks.copy()
        super().begin(sequence, *given)

    def _launch(self, size: Size) -> None:
        super()._launch(size)
        engine: Engine = vars(self.launcher)["engine"]
        source, target = self.text.moves.reshape(-1)[: 2 * max(4, size.rows)].reshape(2, -1).numpy()
        moved = source >= 0
        engine.executable.copy_slots(engine.state, source[moved].copy(), target[moved].copy())


def stand(engine: Engine) -> StandLoop:
    limits, device = engine.executable, torch.device("cpu")
    shape = (LARGEST, limits.candidates)
    names = ("vocabulary", "candidates", "max_length", "max_rows", "max_outputs")
    step: Any = SimpleNamespace(
        states={}, block=limits.block, tables=-(-limits.max_length // limits.block),
        max_path=limits.max_path,
        returned=(torch.zeros(0), torch.zeros(shape, dtype=torch.int32), torch.zeros(shape)), drawn=None,
        **{name: getattr(limits, name) for name in names},
    )  # fmt: skip
    launcher: Any = Stand(step=step, engine=engine, device=device, interpreted=True)
    return StandLoop(launcher, new_state(step, 1, device), Drafting(), max(ROWS))


def main() -> int:
    parser = arguments(__doc__, count=10, max_new_tokens=64)
    given = parser.parse_args()
    model = compile_model(model_path(given.model), strategy="autoregressive", target="cpu")
    prompts = [each.encode(model.tokenizer) for each in read_prompts(given.prompts, given.count)]
    plain = [model.generate(each, given.max_new_tokens, do_sample=False).token_ids for each in prompts]
    lines: list[tuple[str, ...]] = []
    different = 0
    for rows in ROWS:
        host = with_strategy(model, TreeSpec(policy=Fixed(rows)))
        drafted = [host.generate(each, given.max_new_tokens, do_sample=False).stats for each in prompts]
        loop = OnDevice(stand(model.engine), SameSize(rows))
        tokens = rounds = 0
        for prompt, expected in progress(list(zip(prompts, plain, strict=True)), f"{rows} rows"):
            request = Request(prompt, given.max_new_tokens, stop=model.eos_token_ids)
            done = list(loop.decode(model.engine, request))
            text = [token for step in done for token in step.tokens]
            different += text != expected
            tokens, rounds = tokens + len(text), rounds + sum(step.rows > 0 for step in done)
        own = sum(each.tokens for each in drafted) / sum(each.steps for each in drafted)
        lines.append((str(rows), f"{tokens / rounds:.2f}", f"{own:.2f}"))
    columns = ("rows", "accepted length, drafted on the device", "on the host")
    result = {"table": [dict(zip(columns, line, strict=True)) for line in lines], "different_texts": different}
    write_atomically(given.out / "rounds.json", json.dumps(result, indent=1))
    print_table(f"rounds: {len(prompts)} prompts, {different} texts differ from plain decoding's", columns, lines)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
