"""The machine's LLVM target, and the number of rows in its register tiles."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from forerun.codegen.tvm.layout import Processor
from forerun.codegen.tvm.untyped import Target, tvm
from forerun.errors import InvalidOptionError

LANES = 16
"""Numbers in one vector of the generated code; LLVM splits it if the machine's registers are shorter. The order of
reductions depends on it, so it is one constant for all machines."""

OUTPUTS = 32
"""Outputs in one packed block of a linear's weight, [out / 32, in, 32]."""


@dataclass(frozen=True)
class Machine:
    """What the generated code depends on besides the IR. `str` tells machines apart."""

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
        return Machine(triple, cpu, features, *_registers(triple, {name for name, has in present.items() if has}))

    @staticmethod
    def of(mtriple: str | None, mcpu: str | None) -> "Machine":
        """Returns a machine by LLVM's names; without a triple, this machine's system on another processor.

        Raises `InvalidOptionError` for a name that LLVM does not know.
        """
        triple, cpu = mtriple or Machine.host().triple, mcpu or "generic"
        if triple.split("-")[0].replace("arm64", "aarch64") not in map(str, _llvm("llvm_get_targets")()):
            raise InvalidOptionError(f"LLVM compiles for no mtriple {triple!r}: give one such as aarch64-linux-gnu.")
        if not _llvm("llvm_is_valid_cpu")(cpu, triple):
            raise InvalidOptionError(
                f"LLVM knows no mcpu {cpu!r} of {triple}: give a name that `llc -mtriple={triple} -mcpu=help` lists."
            )
        target = Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})
        present = {str(name) for name in _llvm("llvm_get_cpu_features")(target)}
        features = tuple(f"+{name}" for name in sorted(present))
        return Machine(triple, cpu, features, *_registers(triple, present))

    @property
    def processor(self) -> Processor:
        """What the code requires of the machine that runs it."""
        present = (name.removeprefix("+") for name in self.features if name.startswith("+"))
        return Processor(self.triple, self.cpu, tuple(present))

    @property
    def target(self) -> Any:
        return Target({"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu, "mattr": list(self.features)})

    @property
    def tile_rows(self) -> int:
        """Rows whose accumulators for one block of outputs fit in registers, a fifth of which are left for operands."""
        return max(1, int(self.registers * 0.8) // (OUTPUTS // self.width))


def _registers(triple: str, features: Collection[str]) -> tuple[int, int]:
    """Returns the number of vector registers, and the float32 numbers in one."""
    if "avx512f" in features:
        return 32, 16
    if triple.startswith(("aarch64", "arm64")):
        return 32, 4
    return 16, 8 if "avx2" in features else 4


def _llvm(name: str) -> Any:
    return tvm.get_global_func(f"target.{name}")
