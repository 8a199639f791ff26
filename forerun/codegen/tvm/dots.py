"""Dot products of numbers that share a word, as LLVM IR: an instruction where a machine has it, the same bits on all.

    forerun_dot_int8(s, a, b)       s plus the sum of the four unsigned bytes of a times the signed ones of b
    forerun_dot_bfloat16(s, a, b)   s plus the product of the upper halves, plus that of the lower halves

Sums of integers are exact: neither their order nor the instruction matters. The two additions of bfloat16 products are
each rounded once; `vdpbf16ps` takes and gives zero for numbers below 2^-126.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from forerun.codegen.tvm.builder import Expr
from forerun.codegen.tvm.target import LANES
from forerun.codegen.tvm.untyped import T, tirx


@dataclass(frozen=True)
class Way:
    """How a part of `width` lanes is computed: lines that make %r of %s, %a and %b, vectors of that width."""

    feature: str  # what the machine must have, in LLVM's words; "" for nothing
    width: int
    lines: str
    declared: str = ""


@dataclass(frozen=True)
class Dot:
    """A function (s, a, b): s and the result are sums, a and b words of 32 bits."""

    name: str
    dtype: str  # of sums
    kind: str  # the same in LLVM's words
    ways: tuple[Way, ...]  # the first whose feature a machine has is used

    def __call__(self, total: Expr, a: Expr, b: Expr) -> Expr:
        return tirx.call_extern(f"{self.dtype}x{LANES}", self.name, total, a, b)

    @contextmanager
    def known(self, features: Collection[str]) -> Generator[None]:
        """Makes the function known to the kernel whose body is built inside, for a machine with these features."""
        with T.attr(0, "pragma_import_llvm", self.text(self.way(features))):
            yield

    def way(self, features: Collection[str]) -> Way:
        return next(each for each in self.ways if each.feature in features or not each.feature)

    def text(self, way: Way) -> str:
        """Returns the function as a module of LLVM IR: parts of the vectors are computed one by one, and joined."""
        width, kinds = way.width, {"s": self.kind, "a": "i32", "b": "i32"}
        declared, lines = way.declared, way.lines
        for name, size in {"n": width, "m": 4 * width, "h": 2 * width, "bits": 32 * width}.items():
            declared, lines = declared.replace(f"{{{name}}}", str(size)), lines.replace(f"{{{name}}}", str(size))
        whole, part_of = (f"<{lanes} x {self.kind}>" for lanes in (LANES, width))
        body: list[str] = []
        joined = "poison"
        for part in range(LANES // width):
            inside = range(part * width, (part + 1) * width)
            mask = ", ".join(f"i32 {lane}" for lane in inside)
            for name, kind in kinds.items():
                given = f"<{LANES} x {kind}> %{name}, <{LANES} x {kind}> poison"
                body.append(f"%{name}{part} = shufflevector {given}, <{width} x i32> <{mask}>")
            given = ", ".join(f"<{width} x {kind}> %{name}{part}" for name, kind in kinds.items())
            body.append(f"%r{part} = call {part_of} @{self.name}_part({given})")
            wide = ", ".join(f"i32 {lane}" if lane < width else "i32 poison" for lane in range(LANES))
            body.append(f"%w{part} = shufflevector {part_of} %r{part}, {part_of} poison, <{LANES} x i32> <{wide}>")
            mask = ", ".join(f"i32 {LANES + lane - part * width if lane in inside else lane}" for lane in range(LANES))
            body.append(f"%j{part} = shufflevector {whole} {joined}, {whole} %w{part}, <{LANES} x i32> <{mask}>")
            joined = f"%j{part}"
        part_given, given = (
            ", ".join(f"<{lanes} x {kind}> %{name}" for name, kind in kinds.items()) for lanes in (width, LANES)
        )
        calls = "\n  ".join(body)
        return f"""{declared}
define internal {part_of} @{self.name}_part({part_given}) alwaysinline {{
{lines}
  ret {part_of} %r
}}
define linkonce_odr {whole} @{self.name}({given}) alwaysinline {{
  {calls}
  ret {whole} {joined}
}}
"""


BYTES = """
    %u = bitcast <{n} x i32> %a to <{m} x i8>
    %x = bitcast <{n} x i32> %b to <{m} x i8>
"""
VPDPBUSD = "call <{n} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{n} x i32> %s, <{m} x i8> %u, <{m} x i8> %x)"
VPDPBUSD_DECLARED = "declare <{n} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{n} x i32>, <{m} x i8>, <{m} x i8>)"
INT8_DOT = Dot(
    "forerun_dot_int8",
    "int32",
    "i32",
    (
        Way("avx512vnni", 16, f"{BYTES}    %r = {VPDPBUSD}", VPDPBUSD_DECLARED),
        Way("avxvnni", 8, f"{BYTES}    %r = {VPDPBUSD}", VPDPBUSD_DECLARED),
        Way(  # pairs of 16 bits: the even bytes, then the odd ones
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
        Way(
            "i8mm",
            4,
            f"{BYTES}    %r = call <4 x i32> @llvm.aarch64.neon.usdot.v4i32.v16i8"
            "(<4 x i32> %s, <16 x i8> %u, <16 x i8> %x)",
            "declare <4 x i32> @llvm.aarch64.neon.usdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)",
        ),
        Way(  # u = (u - 128) + 64 + 64
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
        Way(
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
        ),
    ),
)
BFLOAT16_DOT = Dot(
    "forerun_dot_bfloat16",
    "float32",
    "float",
    (
        Way(
            "avx512bf16",
            16,
            """
    %u = bitcast <{n} x i32> %a to <{h} x bfloat>
    %x = bitcast <{n} x i32> %b to <{h} x bfloat>
    %r = call <{n} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(<{n} x float> %s, <{h} x bfloat> %u, <{h} x bfloat> %x)
""",
            "declare <{n} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(<{n} x float>, <{h} x bfloat>, <{h} x bfloat>)",
        ),
        Way(
            "",
            16,
            """
    %ub = and <16 x i32> %a, splat (i32 -65536)
    %xb = and <16 x i32> %b, splat (i32 -65536)
    %uf = bitcast <16 x i32> %ub to <16 x float>
    %xf = bitcast <16 x i32> %xb to <16 x float>
    %t = call <16 x float> @llvm.fma.v16f32(<16 x float> %uf, <16 x float> %xf, <16 x float> %s)
    %vb = shl <16 x i32> %a, splat (i32 16)
    %yb = shl <16 x i32> %b, splat (i32 16)
    %vf = bitcast <16 x i32> %vb to <16 x float>
    %yf = bitcast <16 x i32> %yb to <16 x float>
    %r = call <16 x float> @llvm.fma.v16f32(<16 x float> %vf, <16 x float> %yf, <16 x float> %t)
""",
            "declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)",
        ),
    ),
)
