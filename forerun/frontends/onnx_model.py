"""ONNX models as sources: a file, or a directory that holds one, with the tokenizer and end tokens beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from forerun.errors import NotAModelError
from forerun.frontends.directory import CONFIG, read_json, tokenizer_files
from forerun.frontends.importer import Imported
from forerun.frontends.onnx_file import OnnxFile
from forerun.frontends.onnx_import import import_graph
from forerun.frontends.rotary_scaling import LengthLimit
from forerun.progress import Progress

SUFFIX = ".onnx"
NAMES = ("model.onnx", "decoder_model_merged.onnx", "decoder_model.onnx")
"""What exporters call the decoder; the first that is there."""
FOLDER = "onnx"
"""A folder of this name holds the graphs of the model whose tokenizer is in the folder around it."""


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


def is_onnx(path: Path) -> bool:
    """Whether a file is named as an ONNX model; its bytes do not tell."""
    return path.suffix == SUFFIX


def onnx_in(folder: Path) -> Path | None:
    """The decoder's file in a directory without other weights, or None. Raises `NotAModelError` for several files."""
    if any(each for pattern in ("*.safetensors", "*.bin", "*.pt") for each in folder.glob(pattern)):
        return None
    for where in (folder, folder / FOLDER):
        for name in NAMES:
            if (where / name).is_file():
                return where / name
        found = sorted(where.glob(f"*{SUFFIX}"))
        if len(found) > 1:
            shown = ", ".join(each.name for each in found[:3])
            raise NotAModelError(f"{where} holds several ONNX models ({shown}): pass the file of the decoder.")
        if found:
            return found[0]
    return None


def folder_of(path: Path) -> Path:
    """The folder with the tokenizer and the configuration of a model's file."""
    beside, around = path.parent, path.parent.parent
    outside = beside.name == FOLDER and not tokenizer_files(beside) and not (beside / CONFIG).is_file()
    return around if outside else beside


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
