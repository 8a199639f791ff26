"""Operations specific to decoders: rotary embedding, attention over a sequence and over a tree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from xdsl.irdl import AttrSizedOperandSegments, operand_def, opt_operand_def, traits_def
from xdsl.traits import MemoryReadEffect

from forerun.dims import Dim
from forerun.ir.elementwise import broadcast_dims
from forerun.ir.families import AlongAxes, Computation, StepOperation
from forerun.ir.operation import Environment, Types, ValueOperation, operation, require
from forerun.ir.properties import FLAG, INTEGER, NUMBER, SYMBOL, TEXT, Symbol, default, optional, parameter
from forerun.ir.states import history_slots, require_history
from forerun.ir.types import TensorType


@operation
class Rotary(AlongAxes, ValueOperation):
    """Rotary embedding (arXiv 2104.09864) in the half style: x * cos + concat(-x[d/2:], x[:d/2]) * sin.

    x [..., d]; cos and sin broadcast to x.
    """

    name = "spec.rotary"

    x = operand_def(TensorType)
    cos = operand_def(TensorType)
    sin = operand_def(TensorType)

    @classmethod
    def infer(cls, x: TensorType, cos: TensorType, sin: TensorType) -> Types:
        require(isinstance(x.dims[-1], int) and x.dims[-1] % 2 == 0, f"needs an even last dimension in {x}")
        require(cos == sin and cos.dims[-1] == x.dims[-1], f"has tables {cos} and {sin}, which do not fit {x}")
        return [x]

    def evaluate(self, environment: Environment, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
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


def _require_extra(
    first: TensorType | None,
    bias: TensorType | None,
    sinks: TensorType | None,
    bias_by: str | None,
    rows: Sequence[Dim],
    heads: Dim,
) -> None:
    """The shape rules of the optional operands that both attentions take."""
    if first is not None:
        known = first.dtype in ("i64", "i32")
        require(first.dims == tuple(rows) and known, f"has first positions {first}, not one per row")
    if bias is not None:
        require(bias.rank == 2 and bias.dims[0] in (1, heads), f"has the bias {bias}, which does not fit {heads} heads")
        require(bias_by in ("key", "distance"), f"needs bias_by to be 'key' or 'distance', not {bias_by!r}")
    require(sinks is None or sinks.dims == (heads,), f"has the sinks {sinks}, which do not fit {heads} heads")


@operation
class Attention(Computation, ValueOperation):
    """Attention of every position of a sequence over the sequence.

    q [..., H, T, D], k [..., Hkv, T, D], v [..., Hkv, T, Dv]; `scale`, optional `softcap`. Further operands:
      mask   [..., T, T], i1 (True: visible) or a number that is added to the scores;
      first  [T], the first visible position of each row (with `causal`);
      bias   [H or 1, L], added to the scores: by key position or by distance, as `bias_by` says;
      sinks  [H], see `attend`.
    """

    name = "spec.attention"
    irdl_options = (AttrSizedOperandSegments(as_property=True),)

    query = operand_def(TensorType)
    key = operand_def(TensorType)
    value = operand_def(TensorType)
    mask = opt_operand_def(TensorType)
    first = opt_operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    sinks = opt_operand_def(TensorType)
    scale: float = parameter(NUMBER)
    softcap: float | None = optional(NUMBER)
    causal: bool = default(FLAG, False)
    bias_by: str | None = optional(TEXT)

    @classmethod
    def infer(
        cls,
        query: TensorType,
        key: TensorType,
        value: TensorType,
        mask: TensorType | None = None,
        first: TensorType | None = None,
        bias: TensorType | None = None,
        sinks: TensorType | None = None,
        *,
        scale: float,
        softcap: float | None = None,
        causal: bool = False,
        bias_by: str | None = None,
    ) -> Types:
        q, k, v = query, key, value
        require(q.rank == k.rank == v.rank and q.rank >= 3, f"needs one rank of at least 3, not {q}, {k}, {v}")
        agree = q.dims[-1] == k.dims[-1] and k.dims[-2] == v.dims[-2] and k.dims[-3] == v.dims[-3]
        require(agree, f"has queries {q}, keys {k} and values {v} that do not fit each other")
        heads, groups = q.dims[-3], k.dims[-3]
        shares = isinstance(heads, int) and isinstance(groups, int) and heads % groups == 0
        require(shares, f"cannot divide {heads} query heads evenly among {groups} key heads")
        _require_extra(first, bias, sinks, bias_by, q.dims[-2:-1], heads)
        scores = (*q.dims[:-1], k.dims[-2])
        fits = mask is None or (mask.rank >= 2 and broadcast_dims([mask.dims, scores]) == scores)
        require(fits, f"has the mask {mask}, which does not fit scores of {list(scores)}")
        return [q.with_dims((*q.dims[:-1], v.dims[-1]))]

    def evaluate(
        self,
        environment: Environment,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        first: torch.Tensor | None,
        bias: torch.Tensor | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        rows, keys = torch.arange(query.shape[-2])[:, None], torch.arange(key.shape[-2])[None, :]
        visible = keys <= rows if self.causal else None
        added: torch.Tensor | None = None
        if first is not None:
            allowed = keys >= first[:, None]
            visible = allowed if visible is None else visible & allowed
        if mask is not None and mask.dtype == torch.bool:
            visible = mask if visible is None else visible & mask
        elif mask is not None:
            added = mask
        if bias is not None:
            index = keys.expand(len(rows), -1) if self.bias_by == "key" else (rows - keys).clamp(min=0)
            added = bias[:, index]
        return attend(query, key, value, visible, added, self.scale, self.softcap, sinks)


@operation
class TreeAttention(StepOperation, ValueOperation):
    """Attention of every row over its own history (`runtime.executable` says where its slots are).

    It reads the keys [Hkv, D] of state `symbol` and the values [Hkv, Dv] of state `values`, both per position.
    q [N, H, D], positions [N], sequences [N], bases [N], paths [N, D], block_tables [S, B] -> [N, H, Dv]; `block` P,
    `scale`, optional `softcap`. Further operands: `first` [N], `bias` [H or 1, L] with `bias_by`, `sinks` [H], as for
    `spec.attention`.
    """

    name = "spec.tree_attention"
    traits = traits_def(MemoryReadEffect())
    irdl_options = (AttrSizedOperandSegments(as_property=True),)

    query = operand_def(TensorType)
    positions = operand_def(TensorType)
    sequences = operand_def(TensorType)
    bases = operand_def(TensorType)
    paths = operand_def(TensorType)
    block_tables = operand_def(TensorType)
    first = opt_operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    sinks = opt_operand_def(TensorType)
    symbol: Symbol = parameter(SYMBOL)
    values: Symbol = parameter(SYMBOL)
    block: int = parameter(INTEGER)
    value_dim: int = parameter(INTEGER)
    scale: float = parameter(NUMBER)
    softcap: float | None = optional(NUMBER)
    bias_by: str | None = optional(TEXT)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.symbol, self.values)

    @classmethod
    def infer(
        cls,
        query: TensorType,
        positions: TensorType,
        sequences: TensorType,
        bases: TensorType,
        paths: TensorType,
        block_tables: TensorType,
        first: TensorType | None = None,
        bias: TensorType | None = None,
        sinks: TensorType | None = None,
        *,
        symbol: Symbol,
        values: Symbol,
        block: int,
        value_dim: int,
        scale: float,
        softcap: float | None = None,
        bias_by: str | None = None,
    ) -> Types:
        require(block >= 1, f"needs blocks of at least 1 position, not {block}")
        require(value_dim >= 1, f"needs values of at least 1 number, not {value_dim}")
        require(query.rank == 3, f"needs queries [N, H, D], not {query}")
        rows = query.dims[:1]
        require(positions.dims == rows, f"has positions {positions}, which do not fit the rows of {query}")
        require_history(positions, sequences, bases, paths, block_tables)
        _require_extra(first, bias, sinks, bias_by, rows, query.dims[1])
        return [query.with_dims((*query.dims[:-1], value_dim))]

    def evaluate(
        self,
        environment: Environment,
        query: torch.Tensor,
        positions: torch.Tensor,
        sequences: torch.Tensor,
        bases: torch.Tensor,
        paths: torch.Tensor,
        block_tables: torch.Tensor,
        first: torch.Tensor | None,
        bias: torch.Tensor | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        keys, values = environment.states[self.symbol], environment.states[self.values]
        scale, softcap = self.scale, self.softcap
        results: list[torch.Tensor] = []
        for row in range(len(positions)):
            slots = history_slots(row, positions, sequences, bases, paths, block_tables, self.block)
            position = int(positions[row])
            history = torch.arange(position + 1)
            start = 0 if first is None else int(first[row])
            added = None
            if bias is not None:
                index = history if self.bias_by == "key" else position - history
                added = bias[:, index][:, None, start:]
            key, value = (cached[slots[start:]].transpose(0, 1) for cached in (keys, values))
            attended = attend(query[row][:, None], key, value, None, added, scale, softcap, sinks)
            results.append(attended[:, 0])
        return torch.stack(results)
