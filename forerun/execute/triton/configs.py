"""How a launch may be divided: a first choice that spills nothing, and the autotuner's candidates.

No division changes a bit: `block` and `warps` divide outputs, `rows` divides rows into tiles of 16 or 32 (one mma
instruction has 16), `stages` is how far loads run ahead. Blocks of features and of keys are fixed.
"""

from __future__ import annotations

from forerun.codegen.program import Config, Grid, Launch
from forerun.codegen.triton.layout import LEAST_BLOCK

FILLED = 128
"""The fewest programs that a launch should have: about one per multiprocessor."""


def grid_of(launch: Launch) -> Grid:
    """Returns the grid of a launch on a GPU."""
    assert launch.grid is not None
    return launch.grid


def first_config(launch: Launch, rows: int, shared: int = 1) -> Config:
    """Returns the division of a launch of `rows` rows when nothing has been measured."""
    element, grid = weight_element(launch), grid_of(launch)
    match grid.kind:
        case "products" | "head":
            if rows > 16:
                return Config(32 if element == "f32" else 64, 32, 8, 3)
            blocks = (block for block in (64, 32) if _tiles(launch, block) >= FILLED)
            return Config(next(blocks, _least(launch)), 16, 4, 3)
        case "experts":
            return Config(32 if element == "f32" else 64, 16, 4, 3)
        case "attention":
            if element == "f32":
                return Config(64, 16, 8 if shared > 1 else 4, 3)
            if shared > 4:
                return Config(64, 16, 8, 1)  # with loads ahead, some registers spill, which may still be faster
            return Config(64, 16, 8, 2) if shared > 2 else Config(64, 16, 4, 3)
        case _:
            assert launch.config is not None
            return launch.config


def candidates(launch: Launch, rows: int, shared: int = 1) -> list[Config]:
    """Returns the first choice, and others that may be faster."""
    first = first_config(launch, rows, shared)
    others: list[Config] = []
    match grid_of(launch).kind:
        case "products" | "head" if rows > 16:
            others = [Config(block, 32, warps, 3) for block in (16, 32, 64, 128) for warps in (4, 8)]
        case "products" | "head":
            others = [Config(block, 16, 4, stages) for block in (16, 32, 64) for stages in (3, 5)]
            others += [Config(128, 16, 8, 3)]
        case "experts":
            others = [Config(block, 16, 4, stages) for block in (16, 32, 64) for stages in (3, 5)]
        case "attention":
            others = [Config(64, 16, warps, stages) for warps in (4, 8) for stages in (2, 3)]
        case _:
            pass
    return [each for each in dict.fromkeys([first, *others]) if each.block >= _least(launch) or each is first]


def tuned_rows(rows: int) -> int:
    """Returns the bucket of row counts that share a choice: one tile of 16, one of 32, or several."""
    return 16 if rows <= 16 else 32 if rows <= 32 else 256


def weight_element(launch: Launch) -> str:
    """Returns the element type in which a launch's products are computed."""
    kinds = {"products": "weight", "head": "weight", "experts": "weight", "attention": "state"}
    wanted = kinds.get(grid_of(launch).kind)
    found = [each.element for each in launch.operands if each.kind == wanted]
    return next((each for each in found if each in ("bf16", "f16")), "f32")


def _least(launch: Launch) -> int:
    """Returns the smallest tile: a head has no room for the candidates of more, smaller tiles."""
    return LEAST_BLOCK if grid_of(launch).kind == "head" else 16


def _tiles(launch: Launch, block: int) -> int:
    return sum(-(-lanes // block) for lanes in grid_of(launch).columns)
