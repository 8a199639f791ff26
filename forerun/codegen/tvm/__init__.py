"""The CPU target: kernels as TVM TIR, compiled by LLVM, one call a step."""

from forerun.codegen.tvm.executable import State, TraceEntry, TvmExecutable
from forerun.codegen.tvm.kernels import TEMPLATES, Template

__all__ = ["TEMPLATES", "State", "Template", "TraceEntry", "TvmExecutable"]
