"""Small ONNX graphs from text, and what onnxruntime and `@forward` make of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper, parser
from torch import Tensor

from forerun import ir
from forerun.frontends.source import open_source

VOCABULARY, WIDTH = 16, 32
MAX_LENGTH = 64


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray[Any, Any]:
    """Random float32, never zero."""
    drawn = np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32) * scale
    return drawn + np.sign(drawn) * np.float32(0.01)


def embedded(body: str, weights: Mapping[str, Any], inputs: str = "", outputs: str = "", opset: int = 23) -> Any:
    """A model: x [1, T, 32] is the embedding of the tokens; the body, one statement a line, makes `logits` of it."""
    text = f"""<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
    decoder (int64[1,T] input_ids{inputs}) => (float[1,T,C] logits{outputs}) {{
        x = Gather(table, input_ids)
        {body}
    }}"""
    model = parser.parse_model(text)
    for name, array in {"table": numbers(VOCABULARY, WIDTH), **weights}.items():
        stored = array if isinstance(array, onnx.TensorProto) else numpy_helper.from_array(np.asarray(array), name)
        model.graph.initializer.append(stored)
    return model


def saved(model: Any, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save_model(model, path)
    return path


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Its own rewriting quantizes the other operand of a product with a quantized matrix.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs_of(running: Any, ids: Tensor, past: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The inputs of an exported decoder for tokens [1, n] behind a past, which is empty if none is given."""
    seen = 0 if past is None else next(iter(past.values())).shape[2]
    known = {
        "input_ids": ids.numpy(),
        "attention_mask": np.ones((1, seen + ids.shape[1]), np.int64),
        "position_ids": np.arange(seen, seen + ids.shape[1], dtype=np.int64)[None],
        "use_cache_branch": np.array([past is not None]),
        **(past or {}),
    }
    return {each.name: known[each.name] if each.name in known else _empty(each) for each in running.get_inputs()}


def _empty(value: Any) -> Any:
    _, heads, _, features = value.shape
    return np.zeros((1, heads, 0, features), np.float32)


def of_onnxruntime(path: Path, ids: Tensor) -> Tensor:
    """The logits that onnxruntime gives for a whole sequence."""
    running = session(path)
    return torch.from_numpy(running.run(["logits"], inputs_of(running, ids))[0])


def of_forward(path: Path, ids: Tensor) -> Tensor:
    """The logits of `@forward`, as imported."""
    module, weights = open_source(path).import_(MAX_LENGTH)
    return ir.evaluate(module, "forward", [ids], ir.Environment(weights.__getitem__))[0]


def require_same(path: Path, tolerance: float = 1e-5) -> None:
    """`@forward` gives onnxruntime's logits at several lengths."""
    for length in (2, 5, 17):
        ids = torch.randint(0, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(length))
        torch.testing.assert_close(of_forward(path, ids), of_onnxruntime(path, ids), rtol=tolerance, atol=tolerance)


def packed(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Numbers of 4 bits [.., n], two in a byte, the first in its lower half."""
    return (numbers[..., 0::2] | numbers[..., 1::2] << 4).astype(np.uint8)


def int4(name: str, array: np.ndarray[Any, Any]) -> onnx.TensorProto:
    return helper.make_tensor(name, onnx.TensorProto.INT4, array.shape, array.ravel().tolist())
