"""The GPU target: kernels as Triton source, steps as CUDA graphs. Importing this package does not import Triton."""

from forerun.codegen.triton.build import Report, compile_step, report, write_sources
from forerun.codegen.triton.lowering import Lowering

__all__ = ["Lowering", "Report", "compile_step", "report", "write_sources"]
