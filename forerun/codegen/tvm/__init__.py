"""The CPU target: kernels as TVM TIR, compiled by LLVM, one call a step."""

from forerun.codegen.tvm.executable import State, TvmExecutable
from forerun.codegen.tvm.kernels import TEMPLATES, Template
from forerun.codegen.tvm.lowering import Lowering, compile_step, compiled_code

__all__ = [
    "TEMPLATES",
    "Lowering",
    "State",
    "Template",
    "TvmExecutable",
    "compile_step",
    "compiled_code",
]
