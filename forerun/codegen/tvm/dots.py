"""Dot products of bytes as LLVM IR: one instruction for each kind of machine, and the same integers on all of them.

    forerun_dot(s, a, b)    lane by lane: s plus the sum of the four unsigned bytes of a times the four signed ones of b

Sums are exact, so neither their order nor the instruction matters.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from forerun.codegen.tvm.target import LANES
from forerun.codegen.tvm.untyped import T

DOT = "forerun_dot"


@dataclass(frozen=True)
class Dot:
    """How a part of `width` lanes is computed: lines that make %r of %s, %a and %b, all <width x i32>."""

    feature: str  # what the machine must have, in LLVM's words; "" for nothing
    width: int
    lines: str
    declared: str


BYTES = """
    %u = bitcast <{n} x i32> %a to <{m} x i8>
    %x = bitcast <{n} x i32> %b to <{m} x i8>
"""
VPDPBUSD = "call <{n} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{n} x i32> %s, <{m} x i8> %u, <{m} x i8> %x)"
VPDPBUSD_DECLARED = "declare <{n} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{n} x i32>, <{m} x i8>, <{m} x i8>)"
DOTS = (
    Dot("avx512vnni", 16, f"{BYTES}    %r = {VPDPBUSD}", VPDPBUSD_DECLARED),
    Dot("avxvnni", 8, f"{BYTES}    %r = {VPDPBUSD}", VPDPBUSD_DECLARED),
    Dot(  # pairs of 16 bits: the even bytes, then the odd ones
        "avx2",
        8,
        """
    %u = bitcast <8 x i32> %a to <16 x i16>
    %x = bitcast <8 x i32> %b to <16 x i16>
    %ue = and <16 x i16> %u, splat (i16 255)
    %uo = lshr <16 x i16> %u, splat (i16 8)
    %xh = shl <16 x i16> %x, splat (i16 8)
    %xe = ashr <16 x i16> %xh, splat (i16 8)
    %xo = ashr <16 x i16> %x, splat (i16 8)
    %e = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %ue, <16 x i16> %xe)
    %o = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %uo, <16 x i16> %xo)
    %p = add <8 x i32> %e, %o
    %r = add <8 x i32> %p, %s
""",
        "declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)",
    ),
    Dot(
        "i8mm",
        4,
        f"{BYTES}    %r = call <4 x i32> @llvm.aarch64.neon.usdot.v4i32.v16i8"
        "(<4 x i32> %s, <16 x i8> %u, <16 x i8> %x)",
        "declare <4 x i32> @llvm.aarch64.neon.usdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)",
    ),
    Dot(  # u = (u - 128) + 64 + 64
        "dotprod",
        4,
        f"""{BYTES}
    %v = xor <16 x i8> %u, splat (i8 128)
    %r0 = call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32> %s, <16 x i8> %v, <16 x i8> %x)
    %r1 = call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32> %r0, <16 x i8> splat (i8 64), <16 x i8> %x)
    %r = call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32> %r1, <16 x i8> splat (i8 64), <16 x i8> %x)
""",
        "declare <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)",
    ),
    Dot(
        "",
        16,
        "\n".join(
            f"""
    %ul{k} = shl <16 x i32> %a, splat (i32 {24 - 8 * k})
    %u{k} = lshr <16 x i32> %ul{k}, splat (i32 24)
    %xl{k} = shl <16 x i32> %b, splat (i32 {24 - 8 * k})
    %x{k} = ashr <16 x i32> %xl{k}, splat (i32 24)
    %p{k} = mul <16 x i32> %u{k}, %x{k}
    %{"r" if k == 3 else f"s{k + 1}"} = add <16 x i32> %{f"s{k}" if k else "s"}, %p{k}"""
            for k in range(4)
        ),
        "",
    ),
)
"""The first whose feature a machine has is used."""


@contextmanager
def dots(features: Collection[str]) -> Generator[None]:
    """Makes the function known to the kernel whose body is built inside, for a machine with these features."""
    with T.attr(0, "pragma_import_llvm", text(dot_of(features))):
        yield


def dot_of(features: Collection[str]) -> Dot:
    return next(each for each in DOTS if each.feature in features or not each.feature)


def text(dot: Dot) -> str:
    """Returns the function as a module of LLVM IR: parts of the vectors are computed one by one, and joined."""
    width, parts = dot.width, LANES // dot.width
    kind = f"<{width} x i32>"
    sizes = {"n": str(width), "m": str(4 * width), "bits": str(32 * width)}
    declared, lines = dot.declared, dot.lines
    for name, size in sizes.items():
        declared, lines = declared.replace(f"{{{name}}}", size), lines.replace(f"{{{name}}}", size)
    whole = f"<{LANES} x i32>"
    calls: list[str] = []
    joined = "poison"
    for part in range(parts):
        mask = ", ".join(f"i32 {part * width + lane}" for lane in range(width))
        for name in ("s", "a", "b"):
            calls.append(f"%{name}{part} = shufflevector {whole} %{name}, {whole} poison, <{width} x i32> <{mask}>")
        calls.append(f"%r{part} = call {kind} @{DOT}_part({kind} %s{part}, {kind} %a{part}, {kind} %b{part})")
        wide = ", ".join(f"i32 {lane}" if lane < width else "i32 poison" for lane in range(LANES))
        calls.append(f"%w{part} = shufflevector {kind} %r{part}, {kind} poison, {whole} <{wide}>")
        inside = range(part * width, (part + 1) * width)
        mask = ", ".join(f"i32 {LANES + lane - part * width if lane in inside else lane}" for lane in range(LANES))
        calls.append(f"%j{part} = shufflevector {whole} {joined}, {whole} %w{part}, {whole} <{mask}>")
        joined = f"%j{part}"
    body = "\n  ".join(calls)
    return f"""{declared}
define internal {kind} @{DOT}_part({kind} %s, {kind} %a, {kind} %b) alwaysinline {{
{lines}
  ret {kind} %r
}}
define linkonce_odr {whole} @{DOT}({whole} %s, {whole} %a, {whole} %b) alwaysinline {{
  {body}
  ret {whole} {joined}
}}
"""
