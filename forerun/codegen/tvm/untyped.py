"""TVM's modules without their annotations, which are narrower than what they accept."""

import importlib
from typing import Any

tvm: Any = importlib.import_module("tvm")
tirx: Any = importlib.import_module("tvm.tirx")
tvm_ir: Any = importlib.import_module("tvm.ir")
tvm_ffi: Any = importlib.import_module("tvm_ffi")
T: Any = importlib.import_module("tvm.tirx.script.builder")
IRBuilder: Any = importlib.import_module("tvm.script.ir_builder").IRBuilder
Target: Any = importlib.import_module("tvm.target").Target
