"""Whether this machine can run code that was compiled for another one."""

from __future__ import annotations

import re
from functools import cache

from forerun.codegen.tvm.layout import Processor
from forerun.errors import DeviceError
from forerun.execute.tvm.library import Object, function

SYSTEMS = ("linux", "darwin", "windows")
"""Operating systems, as they stand in a triple."""


@cache
def host() -> tuple[str, str, dict[str, bool]]:
    """Returns this machine's triple and processor, and which of LLVM's features it has."""
    features: Object = function("tvm.codegen.llvm.GetHostCPUFeatures")()
    # The C interface shows no fields of TVM's own objects, such as the values of this map; its text shows them.
    found = re.findall(r'"([^"]+)": T\.bool\((True|False)\)', function("ffi.ReprPrint")(features))
    triple, cpu = (function(f"tvm.codegen.llvm.Get{name}")() for name in ("ProcessTriple", "HostCPUName"))
    return triple, cpu, {name: has == "True" for name, has in found}


def this_processor() -> Processor:
    """Returns what code that is compiled for this machine requires."""
    triple, cpu, features = host()
    return Processor(triple, cpu, tuple(sorted(name for name, has in features.items() if has)))


def same_system(one: str, other: str) -> bool:
    """Whether two triples have one architecture and one operating system; their other parts do not matter here."""
    return _system(one) == _system(other)


def require(processor: Processor, where: str) -> None:
    """Raises `DeviceError` unless code for a processor runs on this machine; `where` says whose code it is."""
    triple, cpu, features = host()
    if not same_system(processor.triple, triple):
        raise DeviceError(
            f"{where} was compiled for {processor.triple}, and this machine is {triple}: export the model here, or "
            f"for this machine with mtriple={triple!r}, mcpu={cpu!r}."
        )
    missing = [each for each in processor.features if features.get(each) is False]  # others only tune the code
    if missing:
        raise DeviceError(
            f"{where} was compiled for {processor.cpu}, and this machine ({cpu}) lacks {', '.join(missing)}: export "
            f"the model here, or with mcpu={cpu!r}."
        )


def _system(triple: str) -> tuple[str, str]:
    architecture = triple.split("-")[0].replace("arm64", "aarch64")
    return architecture, next((each for each in SYSTEMS if each in triple), triple)
