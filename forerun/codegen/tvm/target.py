"""The machine's LLVM target, and the number of rows in its register tiles."""

from dataclasses import dataclass
from typing import Any

from forerun.codegen.tvm.untyped import Target, tvm

LANES = 16
"""Numbers in one vector of the generated code; LLVM splits it if the machine's registers are shorter. The order of
reductions depends on it, so it is one constant for all machines."""

OUTPUTS = 32
"""Outputs in one packed block of a linear's weight, [out / 32, in, 32]."""


@dataclass(frozen=True)
class Machine:
    """What the generated code depends on besides the IR."""

    triple: str
    cpu: str
    features: tuple[str, ...]  # "+avx2", "-avx512f", ...: a virtual machine may hide some features of its processor
    registers: int  # vector registers
    width: int  # float32 numbers in one

    @staticmethod
    def host() -> "Machine":
        """Returns this machine, as LLVM sees it."""
        triple = str(tvm.get_global_func("tvm.codegen.llvm.GetProcessTriple")())
        cpu = str(tvm.get_global_func("tvm.codegen.llvm.GetHostCPUName")())
        present = {
            str(name): bool(has) for name, has in tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")().items()
        }
        features = tuple(f"{'+' if has else '-'}{name}" for name, has in sorted(present.items()))
        if present.get("avx512f"):
            return Machine(triple, cpu, features, 32, 16)
        if triple.startswith(("aarch64", "arm64")):
            return Machine(triple, cpu, features, 32, 4)
        return Machine(triple, cpu, features, 16, 8 if present.get("avx2") else 4)

    @property
    def target(self) -> Any:
        return Target({"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu, "mattr": list(self.features)})

    @property
    def tile_rows(self) -> int:
        """Rows whose accumulators for one block of outputs fit in registers, a fifth of which are left for operands."""
        return max(1, int(self.registers * 0.8) // (OUTPUTS // self.width))
