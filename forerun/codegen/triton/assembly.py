"""Kernels as files, assembled from bodies.

A file is self-contained: it imports Triton and includes the functions that it calls, so that it can be read, edited and
run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forerun.codegen.triton.functions import used_functions
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
