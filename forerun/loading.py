"""load(): a bundle in, a compiled model out. Neither torch nor transformers nor xDSL is imported for it."""

from __future__ import annotations

import os

from forerun.artifacts.bundle import Bundle
from forerun.artifacts.manifest import Manifest
from forerun.artifacts.schedule import strategy_of
from forerun.artifacts.tokenizer import read_tokenizer
from forerun.codegen.backends import named
from forerun.compile_options import require_threads
from forerun.errors import CorruptFileError, InvalidOptionError
from forerun.exporting import formats
from forerun.progress import Progress, open_progress
from forerun.runtime.calibration import CostModel
from forerun.runtime.engine import Engine
from forerun.runtime.model import CompiledModel, Origin
from forerun.schedules import estimate_cost, model_of
from forerun.storage import expanded
from forerun.strategies import Strategy, Target, resolve_strategy


def load(
    folder: str | os.PathLike[str],
    strategy: str | Strategy | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> CompiledModel:
    """Loads a bundle that `CompiledModel.export` or `forerun export` wrote.

    strategy    by default the one that the bundle was exported with
    threads     how many threads share a step on the CPU; by default `$FORERUN_THREADS`, or one for each core

    Raises `SourceNotFoundError`, `CorruptFileError` if anything differs from what was written, and a `ForerunError` if
    the library that runs the bundle is missing. Nothing of the bundle runs before it has been checked,
    but digests find accidents, not malice: a bundle is a program, so load only those of people you trust.
    """
    progress = progress or open_progress()
    with progress.stage("read bundle"):
        bundle = Bundle(expanded(folder))
        manifest = bundle.manifest
        backend = formats().get(manifest.format)
        if backend is None or backend.bundled is None:
            raise CorruptFileError(
                f"{bundle.folder} is a bundle of format {manifest.format!r}, which this version of forerun does not "
                "read: load it with the version that wrote it."
            )
        threads = require_threads(backend.name, threads)
        chosen = strategy_of(manifest.strategy) if strategy is None else resolve_strategy(strategy)
        known = _cost(manifest)
        tokenizer = read_tokenizer(bundle, manifest.tokenizer)
        executable = named(backend.bundled.load)(bundle, threads)
    engine = Engine(executable)
    cost = estimate_cost(engine, progress, known) if chosen.needs_cost else None
    origin = Origin(bundle.folder.name, backend.name, manifest.model.dtype)
    target, model = Target(engine, cost, tokenizer, progress, threads), manifest.model
    return model_of(chosen, target, model.eos_token_ids, origin, defaults=model.defaults)


def _cost(manifest: Manifest) -> CostModel | None:
    if manifest.cost is None:
        return None
    try:
        return CostModel.from_dict(manifest.cost)
    except (KeyError, TypeError, ValueError, InvalidOptionError) as error:
        raise CorruptFileError(f"The bundle's cost model cannot be read ({error}): export the model again.") from error
