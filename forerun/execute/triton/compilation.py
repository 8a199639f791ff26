"""Compiles kernels ahead of time, without a GPU: their registers and shared memory, and whether they spill."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from forerun.codegen.program import Config, Program, Source
from forerun.codegen.triton.layout import TritonProgram, function_name
from forerun.execute.triton.configs import first_config
from forerun.execute.triton.executable import TritonExecutable
from forerun.execute.triton.launcher import compile_options
from forerun.execute.triton.loop_calls import WARPS, load_kernels
from forerun.execute.triton.sources import load
from forerun.execute.triton.untyped import GPUTarget, compiler, triton
from forerun.runtime.device_loop import Drafting

POINTERS = {"f32": "*fp32", "bf16": "*bf16", "f16": "*fp16", "i32": "*i32", "f64": "*fp64"}
CAPABILITIES = (80, 90)
"""A100 and H100: the architectures for which kernels are checked without a GPU."""
ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Resources:
    """The resources of a kernel on one architecture. `stack` is the bytes per thread that registers cannot hold."""

    kernel: str
    capability: int
    config: Config
    registers: int
    shared: int
    stack: int

    def to_dict(self) -> dict[str, Any]:
        config = {name: getattr(self.config, name) for name in ("block", "rows", "warps", "stages")}
        return {**vars(self), "config": config}


def compile_kernel(source: Source, config: Config, capability: int, shared: int = 1) -> Resources:
    """Compiles one function of a kernel's file to a cubin, with the given division."""
    name = source.name if shared == 1 else f"{source.name}, {shared} tiles"
    return _resources(name, compiled(source, config, capability, shared), config, capability)


def compiled(source: Source, config: Config, capability: int, shared: int = 1) -> Any:
    """Returns Triton's compiled kernel: `asm["cubin"]`, and `metadata` with the name of the function in it."""
    function = getattr(load(source, interpret=False), function_name(shared))
    names = function.arg_names
    signature = dict(zip(names, ["*i32", *(POINTERS[each] for each in source.elements)], strict=False))
    signature |= {"BLOCK": "constexpr", "ROWS": "constexpr"}
    constants = {"BLOCK": config.block, "ROWS": config.rows}
    attributes = {(number,): ALIGNED for number in range(len(names) - len(constants))}
    return _made(compiler.ASTSource(function, signature, constants, attributes), config, capability)


def _made(text: Any, config: Config, capability: int) -> Any:
    return triton.compile(text, target=GPUTarget("cuda", capability, 32), options=compile_options(config))


def _resources(name: str, made: Any, config: Config, capability: int) -> Resources:
    registers, stack = _usage(made.asm["cubin"])
    return Resources(name, capability, config, registers, int(made.metadata.shared), stack)


def compile_step(
    step: Program, sources: Mapping[str, Source], rows: Sequence[int], capabilities: Sequence[int] = CAPABILITIES
) -> Iterator[Resources]:
    """Compiles every function of every kernel of a step, for each architecture, with its first division for `rows`."""
    for name, config, shared in first_divisions(step, sources, rows):
        for capability in capabilities:
            yield compile_kernel(sources[name], config, capability, shared)


def assembly(program: TritonProgram, names: Sequence[str], capability: int = CAPABILITIES[-1]) -> dict[str, str]:
    """Returns the PTX and the SASS of kernels in their first division for one row, by file name.

    They are compiled ahead of time, for the GPU of this machine if there is one, else for an H100.
    """
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    step, found = program.program, dict[str, str]()
    for name, config, shared in first_divisions(step, step.sources, [1]):
        if name in names and shared == 1:
            made = compiled(step.sources[name], config, capability)
            found[f"{name}.ptx"] = made.asm["ptx"]
            found[f"{name}.sass"] = _told("-sass", made.asm["cubin"])
    return found


def first_divisions(
    step: Program, sources: Mapping[str, Source], rows: Sequence[int]
) -> Iterator[tuple[str, Config, int]]:
    """Yields every function of every kernel with its first division for `rows`: the kernel, the division, the tiles."""
    every = (
        each for entry in step.entries for kernel in entry.kernels for each in (*kernel.launches, *kernel.on_demand)
    )
    launches = {launch.source: launch for launch in every if launch.source in sources}
    for name, launch in launches.items():
        for shared in sources[name].together:
            for config in dict.fromkeys(first_config(launch, count, shared) for count in rows):
                yield name, config, shared


def compile_loop(step: Program, rows: Sequence[int], capabilities: Sequence[int] = CAPABILITIES) -> Iterator[Resources]:
    """Compiles every kernel of the device loop around a step, for iterations of `rows` rows; nothing is run."""
    executable = TritonExecutable(step, {}, "cpu")
    loop = executable.loop(executable.new_state(1), Drafting(), max(rows))
    kernels = load_kernels(interpret=False, sources=step.sources)
    for count in rows:
        size = loop.size(count)
        for call in [*loop.calls.before(size), *loop.calls.after(size)]:
            function = getattr(kernels, call.kernel)
            kinds = {name: _kind(value) for name, value in call.arguments.items()}
            constants = call.constants_of(function)
            signature = {name: kinds.get(name, "constexpr") for name in function.arg_names}
            pointers = [number for number, kind in enumerate(signature.values()) if kind.startswith("*")]
            text = compiler.ASTSource(function, signature, constants, {(number,): ALIGNED for number in pointers})
            for capability in capabilities:
                config = Config(1, count, WARPS[call.kernel], 3)
                yield _resources(f"loop, {call.kernel}", _made(text, config, capability), config, capability)


def _kind(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return "i32"
    names = {
        torch.int32: "i32",
        torch.int64: "i64",
        torch.float32: "fp32",
        torch.bfloat16: "bf16",
        torch.float16: "fp16",
    }
    return "*" + names[value.dtype]


def _told(option: str, cubin: bytes) -> str:
    """Returns what `cuobjdump`, which is part of Triton's package, says of a cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], check=True, capture_output=True, text=True).stdout


def _usage(cubin: bytes) -> tuple[int, int]:
    """Returns the registers and the stack bytes of the kernel in a cubin."""
    told = _told("-res-usage", cubin)
    registers, stack = (re.search(rf"{word}:(\d+)", told) for word in ("REG", "STACK"))
    assert registers is not None, told
    assert stack is not None, told
    return int(registers[1]), int(stack[1])
