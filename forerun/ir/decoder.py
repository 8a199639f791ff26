"""The decoder's own operations: norms, rotary embedding, attention over a sequence and over a tree, cache writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as functional
from xdsl.irdl import irdl_op_definition

from forerun.ir.dims import Dim
from forerun.ir.operation import Environment, Parameters, SpecOperation, Tensors, require, require_parameters
from forerun.ir.ops import broadcast_dims
from forerun.ir.types import TensorType


@irdl_op_definition
class RMSNorm(SpecOperation):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467); the weight may be left out."""

    name = "spec.rms_norm"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        require_parameters(parameters, "eps")
        require(all(each.dims == types[0].dims[-1:] for each in types[1:]), "the weight has one number a feature")
        return [types[0]]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        x = inputs[0].float()
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.parameter("eps"))
        return (y if len(inputs) == 1 else y * inputs[1].float()).to(inputs[0].dtype)


@irdl_op_definition
class LayerNorm(SpecOperation):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension (arXiv 1607.06450)."""

    name = "spec.layer_norm"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        require_parameters(parameters, "eps")
        require(all(each.dims == types[0].dims[-1:] for each in types[1:]), "weight and bias have one number a feature")
        return [types[0]]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return functional.layer_norm(inputs[0], inputs[0].shape[-1:], *inputs[1:], eps=self.parameter("eps"))


@irdl_op_definition
class Rotary(SpecOperation):
    """Rotary embedding (arXiv 2104.09864) in the half style: x * cos + concat(-x[d/2:], x[:d/2]) * sin.

    x [..., d]; cos and sin broadcast to x.
    """

    name = "spec.rotary"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        x, cos, sin = types
        require(isinstance(x.dims[-1], int) and x.dims[-1] % 2 == 0, f"rotary over an even dimension, not {x}")
        require(cos == sin and cos.dims[-1] == x.dims[-1], f"rotary tables {cos} and {sin} do not fit {x}")
        return [x]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        x, cos, sin = inputs
        left, right = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-right, left), dim=-1) * sin


def attend(
    query: torch.Tensor,  # [..., H, rows, D]
    key: torch.Tensor,  # [..., Hkv, keys, D]
    value: torch.Tensor,  # [..., Hkv, keys, Dv]
    visible: torch.Tensor | None,  # bool, broadcasts to [..., H, rows, keys]
    bias: torch.Tensor | None,  # broadcasts likewise
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,  # [H]
) -> torch.Tensor:
    """softmax(scale * q k^T + bias) v with grouped heads; an invisible key has weight zero.

    A sink is one more key of weight exp(sink) without a value.
    """
    groups = query.shape[-3] // key.shape[-3]
    key, value = (each.repeat_interleave(groups, dim=-3).float() for each in (key, value))
    scores = query.float() @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.float()
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    if sinks is not None:
        column = sinks.float()[:, None, None].expand(*scores.shape[:-1], 1)
        return (torch.softmax(torch.cat((scores, column), -1), -1)[..., :-1] @ value).to(query.dtype)
    return (torch.softmax(scores, dim=-1) @ value).to(query.dtype)


def extra_inputs(parameters: Parameters, inputs: Sequence[torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """The optional operands behind the first `count`, by the names in the parameter `extra`."""
    return dict(zip(parameters.get("extra", ()), inputs[count:], strict=True))


def check_extra(
    types: Sequence[TensorType], parameters: Parameters, rows: Sequence[Dim], heads: Dim
) -> dict[str, TensorType]:
    """The optional operands' types by name, after the shape rules of those that both attentions take."""
    names = parameters.get("extra", ())
    require(len(names) == len(set(names)) == len(types), f"extra operands {list(names)}, but {len(types)} are given")
    extra = dict(zip(names, types, strict=True))
    first, bias, sinks = (extra.get(name) for name in ("first", "bias", "sinks"))
    if first is not None:
        require(first.dims == tuple(rows) and first.dtype in ("i64", "i32"), f"first {first} is no position of a row")
    if bias is not None:
        require(bias.rank == 2 and bias.dims[0] in (1, heads), f"the bias {bias} does not fit {heads} heads")
        require(parameters["bias_by"] in ("key", "distance"), f"a bias by {parameters['bias_by']!r}")
    require(sinks is None or sinks.dims == (heads,), f"the sinks {sinks} do not fit {heads} heads")
    return extra


@irdl_op_definition
class Attention(SpecOperation):
    """Attention of every position of a sequence over the sequence.

    q [..., H, T, D], k [..., Hkv, T, D], v [..., Hkv, T, Dv]; `scale`, optional `softcap`. `extra` names more operands:
      mask   [..., T, T], i1 (True: visible) or a number that is added to the scores;
      first  [T], the first visible position of each row (with `causal`);
      bias   [H or 1, L], added to the scores: by key position or by distance, as `bias_by` says;
      sinks  [H], see `attend`.
    """

    name = "spec.attention"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        require_parameters(parameters, "scale")
        q, k, v = types[:3]
        require(q.rank == k.rank == v.rank and q.rank >= 3, f"attention over {q}, {k}, {v}")
        require(q.dims[-1] == k.dims[-1] and k.dims[-2] == v.dims[-2] and k.dims[-3] == v.dims[-3], f"{q}, {k}, {v}")
        heads, groups = q.dims[-3], k.dims[-3]
        require(isinstance(heads, int) and isinstance(groups, int) and heads % groups == 0, f"{heads} over {groups}")
        extra = check_extra(types[3:], parameters, q.dims[-2:-1], heads)
        require(extra.keys() <= {"mask", "first", "bias", "sinks"}, f"there is no extra operand in {list(extra)}")
        mask, scores = extra.get("mask"), (*q.dims[:-1], k.dims[-2])
        fits = mask is None or broadcast_dims([mask.dims, scores]) == scores
        require(fits, f"the mask {mask} does not fit scores of {list(scores)}")
        return [q.with_dims((*q.dims[:-1], v.dims[-1]))]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        query, key, value = inputs[:3]
        extra = extra_inputs(self.parameters, inputs, 3)
        rows, keys = torch.arange(query.shape[-2])[:, None], torch.arange(key.shape[-2])[None, :]
        visible = keys <= rows if self.parameter("causal", False) else None
        if "first" in extra:
            allowed = keys >= extra["first"][:, None]
            visible = allowed if visible is None else visible & allowed
        bias = None
        if "mask" in extra:
            mask = extra["mask"]
            if mask.dtype == torch.bool:
                visible = mask if visible is None else visible & mask
            else:
                bias = mask
        if "bias" in extra:
            index = keys.expand(len(rows), -1) if self.parameter("bias_by") == "key" else (rows - keys).clamp(min=0)
            bias = extra["bias"][:, index]
        scale, softcap = self.parameter("scale"), self.parameter("softcap")
        return attend(query, key, value, visible, bias, scale, softcap, extra.get("sinks"))


@irdl_op_definition
class CacheWrite(SpecOperation):
    """Write the rows' keys [N, Hkv, D] and values [N, Hkv, Dv] to their slots [N] of a cache."""

    name = "spec.cache_write"
    WRITES: ClassVar[bool] = True

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        require_parameters(parameters, "symbol")
        keys, values, slots = types
        fits = keys.rank == values.rank == 3 and keys.dims[:2] == values.dims[:2] and slots.dims == keys.dims[:1]
        require(fits, f"{keys}, {values} and {slots} are not keys, values and slots of the same rows")
        require(slots.dtype in ("i64", "i32"), "slots are i64 or i32")
        return []

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        for cached, rows in zip(environment.caches[self.parameter("symbol")], inputs[:2], strict=True):
            cached[inputs[2].long()] = rows.to(cached.dtype)
        return ()


@irdl_op_definition
class TreeAttention(SpecOperation):
    """Attention of every row over its own history (`runtime.executable` says where a history's slots are).

    q [N, H, D], positions [N], sequences [N], bases [N], paths [N, D], block_tables [S, B] -> [N, H, Dv]; `block` P,
    `scale`, optional `softcap`. `extra` names further operands: `first` [N], `bias` [H or 1, L] with `bias_by`, `sinks`
    [H], as for `spec.attention`.
    """

    name = "spec.tree_attention"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        require_parameters(parameters, "symbol", "scale")
        block, value_dim = parameters["block"], parameters["value_dim"]
        require(isinstance(block, int) and block >= 1, f"a block has 1 position or more, not {block}")
        require(isinstance(value_dim, int) and value_dim >= 1, f"a value has 1 number or more, not {value_dim}")
        q, *of_rows, paths, tables = types[:6]
        require(q.rank == 3, f"queries are [N, H, D], not {q}")
        require(all(each.dims == q.dims[:1] for each in of_rows), f"{[str(each) for each in of_rows]} are not [N]")
        require(paths.rank == 2 and paths.dims[0] == q.dims[0], f"the paths {paths} are not of the rows of {q}")
        require(tables.rank == 2, f"the block tables {tables} are not [S, B]")
        require(all(each.dtype in ("i64", "i32") for each in types[1:6]), "rows are described by i64 or i32")
        extra = check_extra(types[6:], parameters, q.dims[:1], q.dims[1])
        require(extra.keys() <= {"first", "bias", "sinks"}, f"there is no extra operand in {list(extra)}")
        return [q.with_dims((*q.dims[:-1], value_dim))]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        query, positions, sequences, bases, paths, tables = inputs[:6]
        keys, values = environment.caches[self.parameter("symbol")]
        extra = extra_inputs(self.parameters, inputs, 6)
        block = self.parameter("block")
        results: list[torch.Tensor] = []
        for row, position in enumerate(positions.tolist()):
            history = torch.arange(position + 1)
            committed = tables[sequences[row], history // block].long() * block + history % block
            base = int(bases[row])
            slots = torch.cat((committed[:base], paths[row, : max(0, position + 1 - base)].long()))
            first = int(extra["first"][row]) if "first" in extra else 0
            bias = None
            if "bias" in extra:
                index = history if self.parameter("bias_by") == "key" else position - history
                bias = extra["bias"][:, index][:, None, first:]
            key, value = (cached[slots[first:]].transpose(0, 1) for cached in (keys, values))
            scale, softcap = self.parameter("scale"), self.parameter("softcap")
            attended = attend(query[row][:, None], key, value, None, bias, scale, softcap, extra.get("sinks"))
            results.append(attended[:, 0])
        return torch.stack(results)
