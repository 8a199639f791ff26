"""Where ONNX models lie: a file, or a directory that holds one, with the tokenizer and configurations beside it."""

from pathlib import Path

from forerun.errors import NotAModelError

SUFFIX = ".onnx"
NAMES = ("model.onnx", "decoder_model_merged.onnx", "decoder_model.onnx")
"""What exporters call the decoder; the first that is there."""
FOLDER = "onnx"
"""A folder of this name holds the graphs of the model whose tokenizer is in the folder around it."""
OTHERS = ("*.safetensors", "*.gguf", "pytorch_model*.bin", "*.pt")
"""Weights that a directory is read for first."""
TOLD = ("config.json", "genai_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")
"""With one of these, a folder describes its model itself."""


def is_onnx(path: Path) -> bool:
    """Whether a file is named as an ONNX model; its bytes do not tell."""
    return path.suffix == SUFFIX


def onnx_in(folder: Path) -> Path | None:
    """The decoder's file in a directory without other weights, or None. Raises `NotAModelError` for several files."""
    if any(each for pattern in OTHERS for each in folder.glob(pattern)):
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
    outside = beside.name == FOLDER and not any((beside / name).is_file() for name in TOLD)
    return around if outside else beside
