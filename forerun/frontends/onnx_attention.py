"""ONNX's and onnxruntime's attention and rotary embedding, at the start of a sequence: every past is empty."""

from __future__ import annotations

import math

from forerun.frontends.onnx_products import rms_norm
from forerun.frontends.onnx_rules import MICROSOFT, Call, Value, aten, rule
from forerun.frontends.onnx_values import Known
from forerun.frontends.onnx_views import sliced
from forerun.ir import Attention, Builder, Dim, Iota, SSAValue, tensor_type


def heads_first(build: Builder, x: SSAValue, heads: int) -> SSAValue:
    """[1, T, heads * D] as [1, heads, T, D]; a value of four dimensions has that form already."""
    dims = tensor_type(x).dims
    if len(dims) == 4:
        return x
    apart = build.reshape(x, (*dims[:2], heads, -1))
    return build.transpose(apart, (0, 2, 1, 3))


def heads_merged(build: Builder, x: SSAValue) -> SSAValue:
    """[1, heads, T, D] as [1, T, heads * D]."""
    batch, _, rows, _ = tensor_type(x).dims
    return build.reshape(build.transpose(x, (0, 2, 1, 3)), (batch, rows, -1))


def require_no_past(call: Call, *places: int) -> None:
    """Raises ValueError unless the past is left out or empty, as it is at the start of a sequence."""
    for at in places:
        past = call.operand(at)
        if past is not None and not (isinstance(past, Known) and past.empty):
            raise ValueError(f"operand {at} is a past that is not an input of the model")


def seen(build: Builder, rows: Dim, before: int | None, causal: bool = True) -> SSAValue:
    """The pairs [T, T] of a row and a key that it sees: none after it, and at most `before` in front of it."""
    row, key = build.reshape(build.add(Iota, size=rows), (rows, 1)), build.add(Iota, size=rows)
    visible = build.map("le", key, row) if causal else None
    if before is not None:
        near = build.map("ge", key, build.map("sub", row, build.constant(before, "i64")))
        visible = near if visible is None else build.map("and", visible, near)
    if visible is None:
        raise ValueError("attention that sees every position")
    return visible


def attended(
    call: Call,
    query: SSAValue,  # [1, H, T, D]
    key: SSAValue,  # [1, Hkv, T, D]
    value: SSAValue,  # [1, Hkv, T, Dv]
    mask: SSAValue | None = None,
    causal: bool = False,
    before: int | None = None,
    sinks: SSAValue | None = None,
) -> SSAValue:
    """softmax(scale * q k^T + mask) v, [1, H, T, Dv]; `before` is the number of earlier keys that a row sees."""
    build = call.build
    scale = float(call.attribute("scale", 0.0)) or 1 / math.sqrt(int(tensor_type(query).dims[-1]))
    if before is not None or (causal and mask is not None):
        visible = seen(build, tensor_type(query).dims[-2], before, causal)
        if mask is None:
            mask = visible
        elif tensor_type(mask).dtype == "i1":
            mask = build.map("and", mask, visible)
        else:
            mask = build.map("where", visible, mask, build.constant(-math.inf, tensor_type(mask).dtype))
        causal = False
    softcap = float(call.attribute("softcap", 0.0)) or None
    return build.add(Attention, query, key, value, mask, None, None, sinks, scale=scale, softcap=softcap, causal=causal)


@rule("Attention")
def _attention(call: Call) -> tuple[SSAValue | None, ...]:
    require_no_past(call, 4, 5)
    call.require(right_window_size=-1)
    if call.operand(6) is not None:
        raise ValueError("an external cache (nonpad_kv_seqlen)")
    query, key, value, build = call.tensor(0), call.tensor(1), call.tensor(2), call.build
    flat = tensor_type(query).rank == 3
    heads, groups = int(call.attribute("q_num_heads", 0)), int(call.attribute("kv_num_heads", 0))
    query, key, value = (
        heads_first(build, each, count) for each, count in ((query, heads), (key, groups), (value, groups))
    )
    left = int(call.attribute("left_window_size", -1))
    causal = bool(call.attribute("is_causal", 0))
    result = attended(call, query, key, value, call.optional(3), causal, None if left < 0 else left)
    return heads_merged(build, result) if flat else result, key, value, None


@rule("GroupQueryAttention", domain=MICROSOFT)
def _grouped_query_attention(call: Call) -> tuple[SSAValue | None, ...]:
    """query [1, T, H * D], or queries, keys and values packed behind each other; the lengths are those of one prompt.

    `seqlens_k` and `total_sequence_length` say how many positions are not padding: all of them.
    """
    require_no_past(call, 3, 4)
    call.require(k_quant_type="NONE", v_quant_type="NONE", sliding_window_cache=0, qk_output=0)
    if int(call.attribute("smooth_softmax", 0)) > 0:
        raise ValueError("smooth_softmax = 1")
    build, heads, groups = call.build, int(call.attribute("num_heads")), int(call.attribute("kv_num_heads"))
    query, key, value = call.tensor(0), call.optional(1), call.optional(2)
    if key is None or value is None:
        width = int(tensor_type(query).dims[-1]) // (heads + 2 * groups)
        query, key, value = aten("split_with_sizes")(build, query, [heads * width, groups * width, groups * width], 2)
    query, key, value = (
        heads_first(build, each, count) for each, count in ((query, heads), (key, groups), (value, groups))
    )
    if call.operand(14) is not None:
        eps = float(call.attribute("qk_norm_epsilon", 1e-6))
        query, key = rms_norm(build, query, call.tensor(14), eps), rms_norm(build, key, call.tensor(15), eps)
    if call.attribute("do_rotary", 0):
        tables = [at_positions(call, at, call.operand(9), tensor_type(query).dims[-2]) for at in (7, 8)]
        interleaved = bool(call.attribute("rotary_interleaved", 0))
        query, key = (rotated(build, each, tables[0], tables[1], interleaved) for each in (query, key))
    window = int(call.attribute("local_window_size", -1))
    causal = bool(call.attribute("causal", 1))
    mask = call.optional(10)
    before = window - 1 if window > 0 else None  # a window counts the row itself
    result = attended(call, query, key, value, mask, causal, before, call.optional(11))
    return heads_merged(build, result), key, value, None


@rule("MultiHeadAttention", domain=MICROSOFT)
def _multi_head_attention(call: Call) -> tuple[SSAValue | None, ...]:
    require_no_past(call, 6, 7)
    if any(call.operand(at) is not None for at in (4, 8, 9)):
        raise ValueError("a padding mask or a cache that is shared")
    heads, build = int(call.attribute("num_heads")), call.build
    query, key, value = call.tensor(0), call.tensor(1), call.tensor(2)
    if call.operand(3) is not None:
        sizes = [int(tensor_type(each).dims[-1]) for each in (query, key, value)]
        biases = aten("split_with_sizes")(build, call.tensor(3), sizes, 0)
        query, key, value = (
            aten("add")(build, each, bias) for each, bias in zip((query, key, value), biases, strict=True)
        )
    query, key, value = (heads_first(build, each, heads) for each in (query, key, value))
    result = attended(call, query, key, value, call.optional(5), bool(call.attribute("unidirectional", 0)))
    return heads_merged(build, result), key, value, None


def at_positions(call: Call, at: int, positions: Value | None, rows: Dim) -> SSAValue:
    """The rows [T, d / 2] of a table for the positions of a sequence, which count from 0 if there are none."""
    if positions is None:
        found = sliced(call, call.value(at), 0, 0, rows)
        return call.emit(found) if isinstance(found, Known) else found
    where = call.emit(positions) if isinstance(positions, Known) else positions
    where = call.build.reshape(where, tensor_type(where).dims[-1:])
    return aten("embedding")(call.build, call.tensor(at), where)


def rotated(build: Builder, x: SSAValue, cos: SSAValue, sin: SSAValue, interleaved: bool) -> SSAValue:
    """A rotary embedding (arXiv 2104.09864) of x [1, H, T, D] by cos and sin [T, d / 2]; d of D features turn."""
    turned, width = 2 * int(tensor_type(cos).dims[-1]), int(tensor_type(x).dims[-1])
    rest = build.slice(x, 3, turned, width) if turned < width else None
    x = build.slice(x, 3, 0, turned)
    if interleaved:
        pairs = build.reshape(x, (*tensor_type(x).dims[:3], turned // 2, 2))
        even, odd = (aten("select")(build, pairs, 4, at) for at in (0, 1))
        new_even = build.map("sub", build.map("mul", even, cos), build.map("mul", odd, sin))
        new_odd = build.map("add", build.map("mul", odd, cos), build.map("mul", even, sin))
        turned_x = build.reshape(aten("stack")(build, [new_even, new_odd], -1), tensor_type(x).dims)
    else:
        left, right = build.slice(x, 3, 0, turned // 2), build.slice(x, 3, turned // 2, turned)
        wide_cos, wide_sin = (build.concat([each, each], tensor_type(each).rank - 1) for each in (cos, sin))
        straight = build.map("mul", x, wide_cos)
        across = build.map("mul", build.concat([build.map("neg", right), left], 3), wide_sin)
        turned_x = build.map("add", straight, across)
    return turned_x if rest is None else build.concat([turned_x, rest], 3)


@rule("RotaryEmbedding")
def _rotary(call: Call) -> SSAValue:
    return _rotary_at(call, 1, 2, call.operand(3))


@rule("RotaryEmbedding", domain=MICROSOFT)
def _microsoft_rotary(call: Call) -> SSAValue:
    """Positions [1, T], or one number, the position at which the sequence starts."""
    call.require(is_packed_batching=0, scale=1.0)
    positions = call.operand(1)
    if isinstance(positions, Known) and positions.array.size == 1:
        if positions.number() != 0:
            raise ValueError(f"a sequence that starts at position {positions.number()}")
        positions = None
    return _rotary_at(call, 2, 3, positions)


def _rotary_at(call: Call, cos: int, sin: int, positions: Value | None) -> SSAValue:
    x, build = call.tensor(0), call.build
    flat = tensor_type(x).rank == 3
    heads = int(call.attribute("num_heads", 0))
    turned = int(call.attribute("rotary_embedding_dim", 0)) or 2 * int(call.shape(cos)[-1])
    if flat and not heads:
        heads = int(tensor_type(x).dims[-1]) // turned
    x = heads_first(build, x, heads)
    rows = tensor_type(x).dims[-2]
    if len(call.shape(cos)) == 3:  # chosen by position already
        tables = [build.reshape(call.tensor(at), call.shape(at)[1:]) for at in (cos, sin)]
    else:
        tables = [at_positions(call, at, positions, rows) for at in (cos, sin)]
    result = rotated(build, x, tables[0], tables[1], bool(call.attribute("interleaved", 0)))
    return heads_merged(build, result) if flat else result
