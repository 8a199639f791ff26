"""ONNX's operators that select by index."""

from __future__ import annotations

import numpy as np

from forerun import dims as dimensions
from forerun.frontends.onnx_rules import Call, Value, aten, rule
from forerun.frontends.onnx_values import Known
from forerun.frontends.onnx_views import reshaped, sliced
from forerun.ir import Builder, Concat, Gather, SSAValue, tensor_type


@rule("Gather")
def _gather(call: Call) -> Value:
    table, indices = call.value(0), call.value(1)
    dims = call.shape(0)
    axis = call.axis(0, len(dims))
    if isinstance(indices, Known):
        if isinstance(table, Known) and not indices.symbolic:
            return table.with_array(table.array.take(indices.array, axis))
        if indices.array.size == 1:  # a slice, of the last position perhaps
            (at,) = indices.dims()
            end = 2**62 if at == -1 else dimensions.add(at, 1)
            one = sliced(call, table, axis, at, end)
            return reshaped(call, one, (*dims[:axis], *indices.array.shape, *dims[axis + 1 :]))
        indices = _from_the_front(indices, dims[axis])
    where = call.emit(indices) if isinstance(indices, Known) else call.tensor(1)
    return aten("index_select")(call.build, call.tensor(0), axis, where)


def _from_the_front(indices: Known, size: int | str) -> Known:
    if not (indices.array < 0).any():
        return indices
    if isinstance(size, str):
        raise ValueError(f"indices from the end of a dimension of {size}")
    return Known(np.where(indices.array < 0, indices.array + size, indices.array), indices.dtype)


@rule("GatherElements")
def _gather_elements(call: Call) -> SSAValue:
    dims, indices = call.shape(0), call.value(1)
    axis = call.axis(0, len(dims))
    where = call.emit(_from_the_front(indices, dims[axis])) if isinstance(indices, Known) else indices
    return aten("gather")(call.build, call.tensor(0), axis, where)


@rule("GatherND")
def _gather_nd(call: Call) -> Value:
    """Rows by several indices at once; along a dimension of one element there is only one to take."""
    call.require(batch_dims=0)
    x, build = call.tensor(0), call.build
    count = call.shape(1)[-1]
    if not isinstance(count, int):
        raise ValueError(f"{count} indices at once")
    shape = call.shape(1)[:-1]
    dims = tensor_type(x).dims
    columns = [_column(build, call.tensor(1), at) for at in range(count) if dims[at] != 1]
    rest = dims[count:]
    narrow = build.reshape(x, [each for at, each in enumerate(dims) if at >= count or each != 1])
    if not columns:
        return build.broadcast(narrow, (*shape, *rest))
    return build.broadcast(build.add(Gather, narrow, *columns), (*shape, *rest))


def _column(build: Builder, indices: SSAValue, at: int) -> SSAValue:
    """indices[..., at]: the value itself where columns were joined one by one."""
    shape = tensor_type(indices).dims[:-1]
    joined = indices.owner
    if isinstance(joined, Concat) and all(tensor_type(each).dims[-1] == 1 for each in joined.inputs):
        return build.reshape(joined.inputs[at], shape)
    return build.reshape(build.slice(indices, len(shape), at, at + 1), shape)


@rule("ScatterND")
def _scatter_nd(call: Call) -> SSAValue:
    """Only a scatter that writes every element, in order, which is how exporters write x[:, :n] = y."""
    dims = call.shape(0)
    indices = call.operand(1)
    if isinstance(indices, Known) and not indices.symbolic and call.attribute("reduction", "none") in ("none", b"none"):
        places = indices.array.reshape(-1, indices.array.shape[-1])
        covered = dims[: places.shape[1]]
        if all(isinstance(each, int) for each in covered):
            every = np.stack(np.unravel_index(np.arange(len(places)), [int(each) for each in covered]), -1)
            if len(places) == int(np.prod([int(each) for each in covered])) and np.array_equal(every, places):
                return call.build.reshape(call.tensor(2), dims)
    raise ValueError("a scatter that writes only some elements")


@rule("TopK")
def _topk(call: Call) -> tuple[SSAValue, ...]:
    k = int(call.known(1).number())
    return aten("topk")(call.build, call.tensor(0), k, call.attribute("axis", -1), bool(call.attribute("largest", 1)))


@rule("ArgMax")
def _argmax(call: Call) -> SSAValue:
    call.require(select_last_index=0)
    return aten("argmax")(call.build, call.tensor(0), call.attribute("axis", 0), bool(call.attribute("keepdims", 1)))
