"""Kernels as files, assembled from bodies.

A file is self-contained: it imports Triton and includes the functions that it calls, those of `device.py` and those
made from formulas, so that it can be read, edited and run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from forerun.codegen.loops.buffer import Kind
from forerun.codegen.loops.decompose import FORMULAS
from forerun.codegen.loops.expr import Partial
from forerun.codegen.loops.index import Lane
from forerun.codegen.triton.layout import STEP_SIZES, function_name
from forerun.codegen.triton.text import Text

Bodies = Mapping[int, Text]
"""A body for each number of tiles that share a load; only 1 except for attention."""


def _body(text: Text, names: Sequence[str]) -> str:
    sizes = [f"    {name} = tl.load(sizes + {place})" for place, name in enumerate(names) if name in text.sizes]
    return "\n".join([*sizes, *("    " + line for line in text.scopes[0].lines)])


def body_key(bodies: Bodies, names: Sequence[str]) -> str:
    """Returns a text that is equal for kernels of one structure; `names` are the dimensions that `sizes` points to."""
    first = next(iter(bodies.values()))
    elements = [each.element for each in first.arguments]
    return "\n".join([str(elements), *(_body(each, names) for each in bodies.values())])


def assemble(name: str, words: str, bodies: Bodies, sizes: Sequence[str]) -> str:
    """Returns the file of a kernel."""
    first = next(iter(bodies.values()))
    names = ", ".join(first.arguments.values())
    pointers = "\n".join(f"    {label:<14} {buffer.element}" for buffer, label in first.arguments.items())
    texts = {shared: _body(each, sizes) for shared, each in bodies.items()}
    listed = "the numbers of rows, N and M" if tuple(sizes) == STEP_SIZES else ", ".join(["the sizes", *sizes])
    said = f"{name}: {words}.\n\n`sizes` points to {listed}; the others to numbers of\n{pointers}\n"
    parts = [f'"""{said}"""\n\nimport triton\nimport triton.language as tl\n']
    parts.extend(used_functions("\n".join(texts.values())))
    for shared, body in texts.items():
        head = f"def {function_name(shared)}(sizes, {names}, BLOCK: tl.constexpr, ROWS: tl.constexpr):"
        parts.append(f"@triton.jit\n{head}\n{body}\n")
    return "\n\n".join(parts)


@cache
def formula_source(name: str) -> str:
    """Returns the source of a formula's function."""
    formula, body = FORMULAS[name], Text()
    kind: Kind = "integer" if name == "within" else "number"
    variables = {label: Partial(Lane(label), kind) for label in (("index", "size") if name == "within" else ("x",))}
    for label, variable in variables.items():
        body.know(variable, label, 0)
    result = body.render(formula(*variables.values()))
    document = (formula.__doc__ or "").strip().split("\n")[0]
    lines = [*([f'"""{document}"""'] if document else []), *body.scopes[0].lines, f"return {result}"]
    return f"@triton.jit\ndef {name}({', '.join(variables)}):\n" + "".join(f"    {each}\n" for each in lines)


@cache
def device_functions() -> dict[str, str]:
    """Returns the source of every function that a kernel may call, by name: those of `device.py`, and the formulas."""
    text = Path(__file__).with_name("device.py").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for part in text.split("\n\n\n@triton.jit\n")[1:]:
        name = part.removeprefix("def ").partition("(")[0]
        found[name] = "@triton.jit\n" + part.rstrip() + "\n"
    formulas = {name: formula_source(name) for name in FORMULAS if name != "exp"}  # exp is a hardware instruction
    return found | formulas


def used_functions(body: str) -> list[str]:
    """Returns the sources of the device functions that a text calls, directly or not, callees first."""
    sources = device_functions()
    needed: set[str] = set()
    pending = [body]
    while pending:
        text = pending.pop()
        for name, source in sources.items():
            if name not in needed and _calls(text, name):
                needed.add(name)
                pending.append(source.partition("):\n")[2])
    return [source for name, source in sources.items() if name in needed]


def _calls(text: str, name: str) -> bool:
    """Whether a text calls a function by its bare name."""
    at = text.find(name + "(")
    while at >= 0:
        before = text[at - 1] if at else " "
        if not (before.isalnum() or before in "._"):
            return True
        at = text.find(name + "(", at + 1)
    return False
