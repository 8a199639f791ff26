"""What compile() and load() share: a model from a strategy and a target, and the measured cost of its steps."""

from __future__ import annotations

from collections.abc import Iterable

from forerun.progress import Progress, open_progress
from forerun.runtime.calibration import CostModel, calibrate, estimated
from forerun.runtime.engine import Engine
from forerun.runtime.model import CompiledModel, Export, Origin
from forerun.strategies import Strategy, Target, resolve_strategy


def with_strategy(model: CompiledModel, strategy: str | Strategy, progress: Progress | None = None) -> CompiledModel:
    """Returns the same compiled target with another strategy: nothing is recompiled, and the cache is shared."""
    chosen, progress = resolve_strategy(strategy), progress or open_progress()
    cost = model.cost
    if cost is None and chosen.needs_cost:
        cost = measure_cost(model.engine, progress)
    target = Target(model.engine, cost, model.tokenizer, progress)
    return model_of(chosen, target, model.eos_token_ids, model.origin, model.exporter)


def model_of(
    strategy: Strategy,
    target: Target,
    eos_token_ids: Iterable[int],
    origin: Origin | None = None,
    exporter: Export | None = None,
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
    )


def measure_cost(engine: Engine, progress: Progress) -> CostModel:
    """Measures how long steps of all sizes take here, in about a second."""
    with progress.stage("calibrate"), engine.serving:
        return calibrate(engine)


def estimate_cost(engine: Engine, progress: Progress, known: CostModel | None = None) -> CostModel:
    """Measures a few sizes of steps, in a fraction of a second; `known` says how long they all took elsewhere."""
    with progress.stage("calibrate"), engine.serving:
        return estimated(engine, known)
