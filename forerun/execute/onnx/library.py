"""ONNX Runtime, an optional package."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from forerun.cores import thread_count
from forerun.errors import DeviceError

REMEDY = "pip install 'forerun[onnx]'"


def require_onnxruntime() -> Any:
    """Imports and returns ONNX Runtime. Raises `DeviceError` if it is not installed."""
    return _required("onnxruntime")


def require_onnx() -> Any:
    """Imports and returns the package that writes graphs. Raises `DeviceError` if it is not installed."""
    return _required("onnx")


def _required(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise DeviceError(f"The package {package} is not installed: {REMEDY}.") from error


def session(path: str, threads: int | None = None) -> Any:
    """Opens a graph on the CPU. Raises `DeviceError` if ONNX Runtime does not take it."""
    runtime = require_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors: warnings of the optimizer are about speed
    # Blocks of weights are widened once, when the session opens, and not in every step.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = thread_count(threads)
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no class of their own
        raise DeviceError(
            f"ONNX Runtime cannot open {path} ({error}): export the model again, or use version 1.24 or newer."
        ) from error
