"""ONNX models as sources: the importer of a file, and what the configurations beside it say about its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from forerun.frontends.directory import CONFIG, read_json
from forerun.frontends.importer import Imported
from forerun.frontends.onnx_file import OnnxFile
from forerun.frontends.onnx_import import import_graph
from forerun.frontends.onnx_place import folder_of
from forerun.frontends.rotary_scaling import LengthLimit
from forerun.progress import Progress


@dataclass(frozen=True)
class OnnxModel:
    """The importer of an ONNX file."""

    name: str
    file: OnnxFile = field(repr=False, compare=False)
    progress: Progress = field(repr=False, compare=False)

    def import_(self, max_length: int) -> Imported:
        """Imports the graph: see `Importer`."""
        with self.progress.stage("import"):
            return import_graph(self.file, self.name, max_length)


@dataclass(frozen=True)
class Beside:
    """What the files beside a model say; an empty mapping for a file that is not there."""

    config: Mapping[str, Any]
    generation: GenerationConfig | None
    genai: Mapping[str, Any]  # the `model` part of genai_config.json

    @property
    def ends(self) -> list[Any]:
        """What names end tokens, the first to be asked first."""
        text = self.config.get("text_config")
        return [
            getattr(self.generation, "eos_token_id", None),
            self.genai.get("eos_token_id"),
            (text if isinstance(text, Mapping) else self.config).get("eos_token_id"),
        ]

    @property
    def limit(self) -> LengthLimit | None:
        """The positions that the model can have, if a file says so."""
        text = self.config.get("text_config")
        holder = text if isinstance(text, Mapping) else self.config
        sizes = [holder.get("max_position_embeddings"), holder.get("n_positions"), self.genai.get("context_length")]
        known = [each for each in sizes if isinstance(each, int) and each > 0]
        return LengthLimit(min(known), "the model's configuration allows no more") if known else None


def read_beside(path: Path) -> Beside:
    """Reads the configurations beside a model's file. Raises `CorruptFileError` for a damaged one."""
    folder = folder_of(path)
    generation = _object(folder / "generation_config.json")
    model = _object(folder / "genai_config.json").get("model")
    return Beside(
        _object(folder / CONFIG),
        GenerationConfig.from_dict(dict(generation)) if generation else None,
        model if isinstance(model, Mapping) else {},
    )


def _object(path: Path) -> Mapping[str, Any]:
    read = read_json(path) if path.is_file() else {}
    return read if isinstance(read, Mapping) else {}
