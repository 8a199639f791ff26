"""Models in MLIR's torch dialect: text files, module objects of torch-mlir, and where their weights lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from forerun.errors import CorruptFileError, NotAModelError, first_sentence
from forerun.frontends.importer import Imported
from forerun.frontends.mlir_importer import import_module
from forerun.frontends.mlir_text import MlirModule, read_module, read_object
from forerun.frontends.torch_dialect import DeclaredTensor, dtype_of
from forerun.frontends.weights import require_dtype
from forerun.ir import verify
from forerun.progress import Progress

BYTECODE = b"ML\xefR"
"""How MLIR's bytecode begins."""


def open_file(path: Path, dtype: torch.dtype, progress: Progress) -> MlirModel:
    """Opens a text of the torch dialect. Weights that are not among its resources are read from the safetensors file
    of the same stem beside it, under the keys of the resources.

    Raises `CorruptFileError` or `NotAModelError`.
    """
    with progress.stage("load weights"):
        data = path.read_bytes()
        if data.startswith(BYTECODE):
            raise NotAModelError(f"{path} is MLIR bytecode: write the module as text, by str(module).")
        try:
            module = read_module(data.decode(), path.name)
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"{path} is not text: write or download it again.") from error
        weights = path.with_suffix(".safetensors")
        if not weights.is_file():
            return MlirModel(module, {}, f"in {weights.name}, which does not exist", dtype, progress)
        try:
            return MlirModel(module, load_file(weights), f"in {weights.name}", dtype, progress)
        except (SafetensorError, OSError) as error:
            reason = first_sentence(error)
            raise CorruptFileError(f"{weights} cannot be read ({reason}): write or download it again.") from error


def open_object(module: Any, dtype: torch.dtype, progress: Progress) -> MlirModel:
    """Opens a module object of torch-mlir, with its resources."""
    with progress.stage("load weights"):
        return MlirModel(read_object(module, "the torch-mlir module"), {}, "elsewhere", dtype, progress)


@dataclass(frozen=True)
class MlirModel:
    """A module of the torch dialect, with the weights that are not among its resources, and where those lie."""

    module: MlirModule
    beside: Mapping[str, torch.Tensor] = field(repr=False)
    where: str
    dtype: torch.dtype
    progress: Progress = field(repr=False, compare=False)

    def import_(self, max_length: int) -> Imported:
        """Imports the module: see `Importer`. Raises a `ForerunError` that names what is missing or has no rule."""
        with self.progress.stage("import"):
            module, weights = import_module(self.module, self._tensor, max_length)
            require_dtype(self.module.name, weights, self.dtype)
            verify(module)
        return module, weights

    def _tensor(self, key: str, declared: DeclaredTensor) -> torch.Tensor:
        """The tensor of a resource. Raises `NotAModelError` if it is missing or of another shape."""
        name, sizes, dtype = self.module.name, [int(each or 0) for each in declared.sizes], dtype_of(declared)
        blob, held = self.module.resources.get(key), self.beside.get(key)
        if blob is not None:
            needed = math.prod(sizes) * dtype.itemsize
            if len(blob) != needed:
                raise CorruptFileError(
                    f"the resource {key} of {name} holds {len(blob)} bytes, but a tensor of {sizes} and {dtype} has "
                    f"{needed}: write or download the module again."
                )
            return torch.frombuffer(bytearray(blob), dtype=dtype).reshape(sizes)
        if held is None:
            raise NotAModelError(
                f"{name} has no data for the weight {key}, neither among its resources nor {self.where}: write the "
                "module with its resources, or put the weights under these names into a safetensors file beside it."
            )
        if list(held.shape) != sizes or held.dtype != dtype:
            raise NotAModelError(
                f"{name} needs the weight {key} of shape {sizes} and {dtype}, but it has {[*held.shape]} and "
                f"{held.dtype} {self.where}: give the weights that belong to the module."
            )
        return held
