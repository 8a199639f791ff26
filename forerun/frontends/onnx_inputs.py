"""The inputs of an exported decoder, at the start of one sequence that has no padding.

An exporter with a cache writes f(tokens, past, mask) -> logits, present, which a program calls first with all tokens of
a prompt and an empty past, then with one token and the last present as its past. Both give the same logits, or the
export would be wrong: f(t[:n], empty) gives rows 0 .. n of f(t, empty), and f(t[n:], present) the others. So
f(tokens, empty) is the whole model as a function of its tokens, and the passes derive its cached step again, with their
own layout. Every `past` is bound to a tensor with no positions, and each `present` is left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from forerun.errors import NotAModelError, TraceError
from forerun.frontends.forward import SEQUENCE, require_tokens
from forerun.frontends.onnx_values import DTYPES, NUMPY, Known
from forerun.ir import Builder, Dim, Iota, SSAValue

if TYPE_CHECKING:
    from onnx import GraphProto, ValueInfoProto

Value = SSAValue | Known

TOKENS = ("input_ids", "input", "tokens")
PAST = re.compile(r"past|cache", re.IGNORECASE)
LOGITS = "logits"


def bound_inputs(graph: GraphProto, name: str, tokens: SSAValue, build: Builder) -> dict[str, Value]:
    """The value of each input; `tokens` [1, T] are those of the whole sequence.

    Raises `TraceError` for an input of another form, `NotAModelError` for one that no decoder of text has.
    """
    stored = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in stored]
    ids = next((each for wanted in TOKENS for each in inputs if each.name == wanted), None)
    if ids is None:
        raise NotAModelError(
            f"{name} takes {', '.join(each.name for each in inputs) or 'nothing'} but no input_ids: "
            f"give a decoder that was exported to take token ids."
        )
    batch, *sizes = _dims(ids) or [1]
    require_tokens(name, [1 if sizes and isinstance(batch, str) else batch, *sizes])
    found: dict[str, Value] = {ids.name: build.cast(tokens, _dtype(ids))}
    for each in inputs:
        if each is not ids:
            found[each.name] = _bound(each, batch, name, build)
    return found


def _bound(value: ValueInfoProto, batch: Dim, name: str, build: Builder) -> Value:
    dims, dtype = _dims(value), _dtype(value)
    if value.name == "use_cache_branch":
        return Known(np.zeros((1,) * len(dims), np.bool_), "i1")  # the branch without a past
    if value.name == "attention_mask" and len(dims) == 2:
        return build.full((1, SEQUENCE), 1, dtype)
    if value.name in ("position_ids", "cache_position") and len(dims) <= 2:
        return build.cast(build.reshape(build.add(Iota, size=SEQUENCE), (1, SEQUENCE)[2 - len(dims) :]), dtype)
    if PAST.search(value.name) and len(dims) >= 3:
        sizes = [1 if each == batch else each for each in dims]
        shape = [each if isinstance(each, int) else 0 for each in sizes]
        if shape.count(0) != 1:
            raise TraceError(
                f"{name} takes {value.name} of shape {dims}, in which the axis of positions cannot be told from the "
                f"others: export the model with fixed numbers of heads and features."
            )
        return Known(np.zeros(shape, NUMPY[dtype]), dtype)
    raise NotAModelError(
        f"{name} takes the input {value.name} of shape {dims}, which no decoder of text alone has: give a decoder that "
        f"takes input_ids, and at most attention_mask, position_ids and past_key_values."
    )


def _dims(value: ValueInfoProto) -> list[Dim]:
    dims = value.type.tensor_type.shape.dim
    return [each.dim_value if each.HasField("dim_value") else each.dim_param or "?" for each in dims]


def _dtype(value: ValueInfoProto) -> str:
    from onnx import helper

    stored = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name
    if stored not in DTYPES:
        raise TraceError(f"the input {value.name} has the dtype {stored}: export the model with int64 token ids.")
    return DTYPES[stored]


def logits_of(graph: GraphProto, name: str) -> str:
    """The name of the output with the logits. Raises `NotAModelError` if there is none."""
    outputs = [each.name for each in graph.output]
    if LOGITS in outputs:
        return LOGITS
    rest = [each for each in outputs if not re.search(r"present|cache|hidden|attention", each, re.IGNORECASE)]
    if len(rest) == 1 and len(outputs) == 1 and len(_dims(graph.output[0])) in (0, 3):
        return rest[0]
    raise NotAModelError(
        f"{name} gives {', '.join(outputs[:4])} but no logits: give a decoder with its language-model head."
    )
