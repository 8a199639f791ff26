"""Export: a compiled model as a bundle, a folder that runs without the compiler. docs/bundle.md describes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forerun.artifacts.bundle import listed_files, new_bundle, require_new
from forerun.artifacts.manifest import SCHEMA, Exactness, Manifest, Model
from forerun.artifacts.schedule import described
from forerun.artifacts.tokenizer import save_tokenizer
from forerun.artifacts.written import Exportable
from forerun.codegen.backends import BACKENDS, Backend, named
from forerun.errors import InvalidOptionError
from forerun.installed import versions
from forerun.progress import Progress, open_progress
from forerun.runtime.calibration import CostModel
from forerun.runtime.model import CompiledModel
from forerun.storage import BUNDLE, expanded
from forerun.strategies import Strategy, resolve_strategy

TOKENIZER = "tokenizer"
"""The folder of the tokenizer's files in a bundle."""
SAMPLING = (
    "Token t at position p scores logit / temperature + Gumbel noise -log(-log(u)), u the t-th double of the Philox "
    "4x64-10 stream of key (seed, sequence) at counter (0, 0, p, 0); the largest score wins, the lowest id on ties."
)
LIBRARIES = ("forerun", "numpy", "onnx", "onnxruntime", "apache-tvm", "torch", "transformers", "triton")


def formats() -> dict[str, Backend]:
    """Returns the formats of bundles, with the back end that each is made for."""
    return {each.bundled.format: each for each in BACKENDS.values() if each.bundled is not None}


def require_format(name: object) -> Backend:
    """Returns the back end of a format. Raises `InvalidOptionError`."""
    known = formats()
    if not isinstance(name, str) or name not in known:
        raise InvalidOptionError(f"There is no format {name!r} of bundles: use one of {', '.join(known)}.")
    return known[name]


@dataclass(frozen=True)
class Text:
    """What a bundle says of a model besides its step: whose text it gives, and how."""

    source: str  # the name of what was compiled
    dtype: str
    strategy: object
    tokenizer: Any  # None if none is known
    eos_token_ids: Collection[int]
    cost: CostModel | None = None  # if it was measured
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])  # keywords of `generate` that apply by default


@dataclass(frozen=True)
class Exporter:
    """How a compiled model is exported: `emit` generates the program of a back end from the model's source."""

    source: str  # its name
    emit: Callable[[str, Strategy, Progress], Any]

    def export(
        self,
        model: CompiledModel,
        folder: str | os.PathLike[str],
        format: str = "onnx",
        force: bool = False,
        mcpu: str | None = None,
        mtriple: str | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Writes a bundle (`CompiledModel.export`)."""
        destination = Destination.of(folder, format, force, mcpu, mtriple)
        progress, backend, dtype = progress or open_progress(), destination.backend.name, model.dtype or "float32"
        if dtype not in destination.backend.weight_dtypes:
            raise InvalidOptionError(
                f"A bundle of format {format!r} has no {dtype} weights: compile the model with one of "
                f"{', '.join(destination.backend.weight_dtypes)}."
            )
        strategy = resolve_strategy(model.strategy)
        own = model.executable if model.target == backend else None
        ends = tuple(sorted(model.eos_token_ids))
        exportable = Exportable(own, lambda: self.emit(backend, strategy, progress), progress, mcpu, mtriple, ends)
        text = Text(self.source, dtype, strategy, model.tokenizer, ends, model.cost, model.defaults)
        return write_bundle(destination, text, exportable)


@dataclass(frozen=True)
class Destination:
    """Where a bundle is written to, and what for."""

    folder: Path
    format: str
    force: bool

    @staticmethod
    def of(
        folder: str | os.PathLike[str], format: str, force: bool, mcpu: str | None = None, mtriple: str | None = None
    ) -> Destination:
        """Raises `InvalidOptionError` for what could not be written, before any work is done."""
        bundled = require_format(format).bundled
        if bundled is not None and bundled.probe is not None:
            named(bundled.probe)()
        if (mcpu or mtriple) and format != "tvm":
            raise InvalidOptionError(f"A bundle of format {format!r} is for no processor: leave out mcpu and mtriple.")
        path = expanded(folder).resolve()
        require_new(path, force)
        return Destination(path, format, force)

    @property
    def backend(self) -> Backend:
        return require_format(self.format)


def write_bundle(destination: Destination, text: Text, exportable: Exportable) -> Path:
    """Writes a bundle and returns its folder; after an error, the place is as it was before."""
    backend, schedule = destination.backend, described(text.strategy)
    bundled = backend.bundled
    assert bundled is not None
    with new_bundle(destination.folder, destination.force) as unfinished:
        written = named(bundled.write)(unfinished, exportable)
        notes = list(written.notes)
        tokenizer: tuple[str, ...] = ()
        if text.tokenizer is not None:
            tokenizer = save_tokenizer(text.tokenizer, unfinished / TOKENIZER, notes)
        with exportable.progress.stage("check sums"):
            files = listed_files(unfinished)
        ends = tuple(sorted(text.eos_token_ids))
        manifest = Manifest(
            schema=SCHEMA,
            format=destination.format,
            model=Model(text.source, text.dtype, written.vocabulary, ends, written.width, text.defaults),
            limits=written.limits,
            entries=written.entries,
            states=written.states,
            strategy=schedule,
            cost=None if text.cost is None else text.cost.to_dict(),
            sampling=SAMPLING,
            exactness=Exactness("bits" if backend.exact else "near-ties", bundled.promise),
            content=written.content,
            tokenizer=tuple(f"{TOKENIZER}/{name}" for name in tokenizer),
            notes=tuple(notes),
            provenance=versions(LIBRARIES),
            files=files,
        )
        (unfinished / BUNDLE).write_text(manifest.text(), encoding="utf-8")
    return destination.folder
