"""Running a function on several processes joined by gloo, as torchrun starts them."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from forerun.distributed import Layout

PATIENCE = 300


def run(layout: Layout, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Runs `work(rank, layout, *arguments)` on each rank; returns what each gave, or the exception that ended it."""
    context = processes.get_context("spawn")
    started = [
        context.Process(target=_rank, args=(rank, layout, folder, work, arguments), daemon=True)
        for rank in range(layout.world)
    ]
    for each in started:
        each.start()
    for each in started:
        each.join(PATIENCE)
        assert not each.is_alive(), "a rank hangs"
    paths = [folder / str(rank) for rank in range(layout.world)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in paths]


def _rank(rank: int, layout: Layout, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=layout.world)
    try:
        result = work(rank, layout, *arguments)
    except Exception as error:
        traceback.print_exc()
        result = error
    torch.save(result, folder / str(rank))
