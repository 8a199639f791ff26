"""Kernels as files, assembled from bodies.

A file stands alone: it imports Triton and holds the device functions that it calls, so that it can be read, edited and
run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forerun.codegen.triton.expressions import Expressions
from forerun.codegen.triton.functions import used_functions
from forerun.codegen.triton.step import STEP_SIZES, function_name


def _body(context: Expressions, names: Sequence[str]) -> str:
    sizes = [f"    {name} = tl.load(sizes + {place})" for place, name in enumerate(names) if name in context.sizes]
    return "\n".join([*sizes, *("    " + line for line in context.scopes[0].lines)])


def body_key(kind: str, variants: Mapping[int, Expressions], names: Sequence[str]) -> str:
    """A text that is equal for kernels of one structure; `names` are the dimensions that `sizes` points to."""
    first = next(iter(variants.values()))
    return "\n".join([kind, str(list(first.elements.values())), *(_body(each, names) for each in variants.values())])


def assemble(name: str, words: str, variants: Mapping[int, Expressions], sizes: Sequence[str]) -> str:
    """The file of a kernel."""
    first = next(iter(variants.values()))
    names = ", ".join(first.arguments.values())
    pointers = "\n".join(f"    {text:<14} {first.elements[slot]}" for slot, text in first.arguments.items())
    bodies = {shared: _body(context, sizes) for shared, context in variants.items()}
    listed = "the numbers of rows, N and M" if sizes == STEP_SIZES else ", ".join(["the sizes", *sizes])
    said = f"{name}: {words}.\n\n`sizes` points to {listed}; the others to numbers of\n{pointers}\n"
    parts = [f'"""{said}"""\n\nimport triton\nimport triton.language as tl\n']
    parts.extend(used_functions("\n".join(bodies.values())))
    for shared, body in bodies.items():
        head = f"def {function_name(shared)}(sizes, {names}, BLOCK: tl.constexpr, ROWS: tl.constexpr):"
        parts.append(f"@triton.jit\n{head}\n{body}\n")
    return "\n\n".join(parts)
