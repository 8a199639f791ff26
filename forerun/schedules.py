"""What compile() and load() share: a model from a strategy and a target, and the measured cost of its steps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from forerun.errors import InvalidOptionError
from forerun.progress import Progress, open_progress
from forerun.runtime.calibration import CostModel, calibrate, estimated, scaled
from forerun.runtime.engine import Engine
from forerun.runtime.keywords import NONE
from forerun.runtime.model import CompiledModel, Export, Origin
from forerun.storage import keeping, write_atomically
from forerun.strategies import Strategy, Target, resolve_strategy


def with_strategy(model: CompiledModel, strategy: str | Strategy, progress: Progress | None = None) -> CompiledModel:
    """Returns the same compiled target with another strategy: nothing is recompiled, and the cache is shared."""
    chosen, progress = resolve_strategy(strategy), progress or open_progress()
    cost = model.cost
    if cost is None and chosen.needs_cost:
        cost = measure_cost(model.engine, progress)
    target = Target(model.engine, cost, model.tokenizer, progress)
    return model_of(chosen, target, model.eos_token_ids, model.origin, model.exporter, model.defaults)


def model_of(
    strategy: Strategy,
    target: Target,
    eos_token_ids: Iterable[int],
    origin: Origin | None = None,
    exporter: Export | None = None,
    defaults: Mapping[str, Any] = NONE,
) -> CompiledModel:
    drafter, policy = strategy.build(target)
    on_device = strategy.on_device(target)
    return CompiledModel(
        target.executable,
        drafter,
        policy,
        target.tokenizer,
        eos_token_ids,
        target.cost,
        target.engine,
        on_device,
        strategy,
        origin,
        exporter,
        defaults,
    )


def measure_cost(engine: Engine, progress: Progress, kept: Path | None = None) -> CostModel:
    """Measures how long steps of all sizes take here, in seconds.

    `kept`: the file in which that is remembered. A few sizes then suffice, in a fraction of a second, unless the times
    have changed in another way than by a factor.
    """
    known = None if kept is None else read_cost(kept)
    with progress.stage("calibrate"), engine.serving:
        found = None if known is None else scaled(known, estimated(engine))
        if found is not None:
            return found
        cost = calibrate(engine)
    if kept is not None:
        with keeping("step times"):
            write_atomically(kept, json.dumps(cost.to_dict()))
    return cost


def read_cost(kept: Path) -> CostModel | None:
    """Returns the times in a file; None if there are none, or if it is damaged."""
    try:
        return CostModel.from_dict(json.loads(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, InvalidOptionError):
        return None


def estimate_cost(engine: Engine, progress: Progress, known: CostModel | None = None) -> CostModel:
    """Measures a few sizes of steps, in a fraction of a second; `known` says how long they all took elsewhere."""
    with progress.stage("calibrate"), engine.serving:
        few = estimated(engine)
    return few if known is None else scaled(known, few) or few
