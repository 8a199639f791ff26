"""LLVM IR and assembly of single kernels, cut to the kernel's function."""

from __future__ import annotations

import re
from collections.abc import Sequence

from forerun.codegen.tvm.layout import TvmProgram
from forerun.execute.tvm.library import Module

DEBUG = re.compile(r"\.(loc|cfi_\w+|file)\b|\.Ltmp\d+:|\.Lfunc_(begin|end)\d+:|#dbg_")
"""Lines that only a debugger reads."""
HELPER = re.compile(r"__tvm_set_raised|__tvm_ffi_main|__truncsfhf2|__extendhfsf2")
"""TVM's functions beside a kernel's own."""


def assembly(program: TvmProgram, names: Sequence[str]) -> dict[str, str]:
    """Returns the LLVM IR and the assembly of kernels for this machine, by file name.

    A kernel is compiled as a function of its own; in a step, LLVM may make it part of the one that calls it. Its
    beginning checks the arguments' types.
    """
    found: dict[str, str] = {}
    for name in names:
        module = Module.of(program.kernels.function(name).module)
        found[f"{name}.ll"] = _ir(module.text("ll"))
        found[f"{name}.s"] = _assembly(module.text("s"))
    return found


def _ir(text: str) -> str:
    """The functions that LLVM IR defines, without TVM's own."""
    found: list[str] = []
    for function in re.findall(r"^define .*?^}$", text, re.MULTILINE | re.DOTALL):
        if not HELPER.search(function.partition("{")[0]):
            lines = (re.sub(r", ![\w.]+ !\d+|,? !dbg ![\w()]+", "", line) for line in function.splitlines())
            found.append("\n".join(line for line in lines if not DEBUG.match(line.strip())))
    return "\n\n".join(found) + "\n"


def _assembly(text: str) -> str:
    """The functions of assembly, without TVM's own; each ends with the directive that gives its size."""
    found: list[str] = []
    inside = False
    for line in text.splitlines():
        if re.match(r"[^\s.#][^\s]*:", line):
            inside = not HELPER.search(line)
        elif line.strip().startswith((".size", ".section")):
            inside = False
        if inside and not DEBUG.match(line.strip()):
            found.append(line)
    return "\n".join(found) + "\n"
