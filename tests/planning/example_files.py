"""The example files of the planner, read."""

from pathlib import Path

from forerun.planning.hardware import Device, read_hardware
from forerun.planning.shape import Shape, read_shape

EXAMPLES = Path(__file__).parents[2] / "examples" / "plan"
HARDWARE = str(EXAMPLES / "hardware" / "step3_paper.yaml")
MODELS = ("step3", "deepseek_v3", "kimi_k2", "qwen3_235b", "qwen3_32b")


def model_file(name: str) -> str:
    return str(EXAMPLES / "models" / f"{name}.yaml")


def shape_of(name: str) -> Shape:
    return read_shape(model_file(name))


def devices() -> dict[str, Device]:
    return {each.name: each for each in read_hardware(HARDWARE)}
