"""Triton's modules without their annotations, which are too narrow."""

import importlib
from typing import Any

triton: Any = importlib.import_module("triton")
compiler: Any = importlib.import_module("triton.compiler")
GPUTarget: Any = importlib.import_module("triton.backends.compiler").GPUTarget
language: Any = importlib.import_module("triton.language")
standard: Any = importlib.import_module("triton.language.standard")
testing: Any = importlib.import_module("triton.testing")
OutOfResources: Any = importlib.import_module("triton.runtime.errors").OutOfResources
