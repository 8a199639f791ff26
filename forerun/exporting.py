"""Export: a compiled model as a bundle, a folder that runs without the compiler. docs/bundle.md describes it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from forerun import __version__
from forerun.artifacts.bundle import listed_files, new_bundle, require_new
from forerun.artifacts.manifest import NAME, SCHEMA, Exactness, Manifest, Model
from forerun.artifacts.schedule import described
from forerun.artifacts.tokenizer import save_tokenizer
from forerun.artifacts.written import Exportable
from forerun.codegen.backends import BACKENDS, Backend, named
from forerun.errors import InvalidOptionError
from forerun.progress import Progress, open_progress
from forerun.runtime.model import CompiledModel
from forerun.storage import expanded

TOKENIZER = "tokenizer"
"""The folder of the tokenizer's files in a bundle."""
SAMPLING = (
    "Token t at position p scores logit / temperature + Gumbel noise -log(-log(u)), u the t-th double of the Philox "
    "4x64-10 stream of key (seed, sequence) at counter (0, 0, p, 0); the largest score wins, the lowest id on ties."
)
LIBRARIES = ("numpy", "onnx", "onnxruntime", "apache-tvm", "torch", "transformers", "triton")


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
class Exporter:
    """How a compiled model is exported: `emit` generates the program of a back end from the model's source."""

    source: str  # its name
    emit: Callable[[str, Progress], Any]

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
        """Writes a bundle and returns its folder.

        folder      a path that does not exist, or an empty folder; with `force`, any folder, which is replaced whole
        format      "onnx": for ONNX Runtime, in any language; "tvm": a library for this processor, or for `mcpu`
        mcpu, mtriple   another processor and system than this machine's, by LLVM's names ("tvm" alone)

        Raises `InvalidOptionError` and whatever compiling may raise; the folder is then as it was before.
        """
        backend = require_format(format)
        bundled = backend.bundled
        assert bundled is not None
        if (mcpu or mtriple) and format != "tvm":
            raise InvalidOptionError(f"A bundle of format {format!r} is for no processor: leave out mcpu and mtriple.")
        path = expanded(folder)
        require_new(path, force)
        schedule, progress = described(model.strategy), progress or open_progress()
        own = model.executable if model.target == backend.name else None
        ends = tuple(sorted(model.eos_token_ids))
        exportable = Exportable(own, lambda: self.emit(backend.name, progress), progress, mcpu, mtriple, ends)
        with new_bundle(path, force) as unfinished:
            written = named(bundled.write)(unfinished, exportable)
            notes = list(written.notes)
            tokenizer: tuple[str, ...] = ()
            if model.tokenizer is not None:
                tokenizer = save_tokenizer(model.tokenizer, unfinished / TOKENIZER, notes)
            with progress.stage("check sums"):
                files = listed_files(unfinished)
            manifest = Manifest(
                schema=SCHEMA,
                format=format,
                model=Model(
                    self.source,
                    model.dtype or "float32",
                    written.vocabulary,
                    ends,
                    written.width,
                ),
                limits=written.limits,
                entries=written.entries,
                states=written.states,
                strategy=schedule,
                cost=None if model.cost is None else model.cost.to_dict(),
                sampling=SAMPLING,
                exactness=Exactness("bits" if backend.exact else "near-ties", bundled.promise),
                content=written.content,
                tokenizer=tuple(f"{TOKENIZER}/{name}" for name in tokenizer),
                notes=tuple(notes),
                provenance=_provenance(),
                files=files,
            )
            (unfinished / NAME).write_text(manifest.text(), encoding="utf-8")
        return path


def _provenance() -> dict[str, str]:
    """Returns the versions that a bundle was made with."""
    found = {"forerun": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
