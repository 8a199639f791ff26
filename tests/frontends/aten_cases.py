"""Expressions for every ATen rule, and the comparison of an imported program with its module."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from forerun import ir
from forerun.frontends.torch_export import import_program, operator_name
from forerun.frontends.weights import program_weights

importlib.import_module("transformers.integrations.moe")  # which registers the grouped product
aten = torch.ops.aten
VOCABULARY, WIDTH = 32, 8
LENGTHS = (3, 8)


class Values:
    """The inputs of an expression: tokens `i`, their features `x`, more of each kind and fixed weights."""

    def __init__(self, module: "Expression", input_ids: Tensor) -> None:
        self.i = input_ids  # [1, T], i64
        self.x = module.table[input_ids]  # [1, T, 8]
        self.y = module.more[input_ids]  # [1, T, 8], positive
        self.seen = self.x > 0
        self.odd = input_ids % 2 == 1
        self.square = module.square  # [8, 8]
        self.vector = module.vector  # [8]
        self.matrix = module.matrix  # [6, 8]
        self.T = input_ids.shape[1]


class Expression(nn.Module):
    def __init__(self, expression: Callable[[Values], Any]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.expression = expression
        self.table = nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=generator), requires_grad=False)
        self.more = nn.Parameter(torch.rand(VOCABULARY, WIDTH, generator=generator) + 0.1, requires_grad=False)
        self.square = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator), requires_grad=False)
        self.vector = nn.Parameter(torch.randn(WIDTH, generator=generator), requires_grad=False)
        self.matrix = nn.Parameter(torch.randn(6, WIDTH, generator=generator), requires_grad=False)

    def forward(self, input_ids: Tensor) -> Any:
        return self.expression(Values(self, input_ids))


def exported(module: nn.Module, lowest: int = 2, gradients: bool = False) -> torch.export.ExportedProgram:
    length = torch.export.Dim("length", min=lowest, max=64)
    example = torch.arange(11)[None]
    with torch.set_grad_enabled(gradients):
        return torch.export.export(module, (example,), dynamic_shapes=({1: length},), strict=False)


def operators(program: torch.export.ExportedProgram) -> set[str]:
    return {operator_name(node.target) for node in program.graph.nodes if node.op == "call_function"}


def check(module: nn.Module, program: torch.export.ExportedProgram, lengths: tuple[int, ...] = LENGTHS) -> ir.ModuleOp:
    """Imports a program and compares @forward with the module at several lengths."""
    imported = import_program(program)
    ir.verify(imported)
    environment = ir.Environment(program_weights(program).__getitem__)
    for length in lengths:
        tokens = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(length))
        (result,) = ir.evaluate(imported, "forward", [tokens], environment)
        torch.testing.assert_close(result, module(tokens), rtol=1e-5, atol=1e-5, equal_nan=True)
    return imported


Rules = dict[str, Callable[[Values], Any]]

OF_ANY = [
    aten.neg, aten.abs, aten.sign, aten.floor, aten.ceil, aten.round, aten.exp, aten.expm1, aten.exp2, aten.sin,
    aten.cos, aten.tanh, aten.erf, aten.sigmoid, aten.relu, aten.silu, aten.square, aten.contiguous, aten.clone,
    aten.alias, aten.detach, aten.lift_fresh_copy, aten.gelu, aten.leaky_relu, aten.softplus, aten.hardtanh,
]  # fmt: skip
OF_POSITIVE = [aten.log, aten.log1p, aten.log2, aten.sqrt, aten.rsqrt, aten.reciprocal]
OF_TWO = [
    aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.true_divide, aten.floor_divide, aten.remainder,
    aten.multiply, aten.subtract, aten.divide, aten.maximum, aten.minimum, aten.eq,
    aten.ne, aten.lt, aten.le, aten.gt, aten.ge,
    aten.not_equal, aten.less, aten.less_equal, aten.greater, aten.greater_equal,
]  # fmt: skip
OF_TRUTH = [
    aten.__and__, aten.__or__, aten.__xor__, aten.bitwise_and, aten.bitwise_or, aten.logical_and, aten.logical_or,
]  # fmt: skip


def applied(functions: list[Any], operands: Callable[[Values], tuple[Tensor, ...]]) -> Rules:
    return {each.__name__: lambda v, each=each: each(*operands(v)) for each in functions}


ELEMENTWISE: Rules = (
    applied(OF_ANY, lambda v: (v.x,))
    | applied(OF_POSITIVE, lambda v: (v.y,))
    | applied(OF_TWO, lambda v: (v.x, v.y))
    | applied(OF_TRUTH, lambda v: (v.seen, v.odd[..., None]))
)

VIEWS: Rules = {
    "view": lambda v: aten.view(v.x, [1, v.T, 2, -1]),
    "reshape": lambda v: aten.reshape(v.x, [v.T, -1]),
    "_unsafe_view": lambda v: aten._unsafe_view(v.x, [v.T, 4, 2]),
    "view_as": lambda v: aten.view_as(v.i, v.i + 1),
    "reshape_as": lambda v: aten.reshape_as(v.x.transpose(0, 1), v.x),
    "unsqueeze": lambda v: aten.unsqueeze(aten.unsqueeze(v.x, 1), -1),
    "squeeze": lambda v: aten.squeeze(v.x[None], 0),
    "flatten": lambda v: aten.flatten(v.x.view(1, v.T, 2, 4), -2, -1),
    "unflatten": lambda v: aten.unflatten(v.x, 2, [2, -1]),
    "transpose": lambda v: aten.transpose(v.x, 1, -1),
    "swapaxes": lambda v: aten.swapaxes(v.x, 0, 1),
    "swapdims": lambda v: aten.swapdims(v.x, -1, -2),
    "t": lambda v: aten.t(v.i),
    "mT": lambda v: v.x.mT,
    "numpy_T": lambda v: aten.numpy_T(v.i),
    "permute": lambda v: aten.permute(v.x, [2, -3, 1]),
    "expand": lambda v: aten.expand(v.x[:, :, None], [2, -1, 3, -1]),
    "broadcast_to": lambda v: aten.broadcast_to(v.i, [4, v.T]),
    "expand_as": lambda v: aten.expand_as(v.vector, v.x),
    "slice": lambda v: aten.slice(v.x, 2, 1, 7, 2),
    "narrow": lambda v: aten.narrow(v.x, -1, 2, 3),
    "select": lambda v: aten.select(v.x, 2, -2),
    "split": lambda v: aten.split(v.x, 3, 2)[2],
    "split_with_sizes": lambda v: aten.split_with_sizes(v.x, [1, 5, 2], -1)[1],
    "chunk": lambda v: aten.chunk(v.x, 3, -1)[2],
    "unbind": lambda v: aten.unbind(v.x.view(1, v.T, 4, 2), 3)[1],
    "cat": lambda v: aten.cat([v.x, v.y[..., :3]], -1),
    "concat": lambda v: aten.concat([v.x, v.x], 0),
    "concatenate": lambda v: aten.concatenate([v.x[:, :1], v.x], 1),
    "stack": lambda v: aten.stack([v.x, v.y], -2),
    "repeat": lambda v: aten.repeat(v.x, [3, 1, 1, 2]),
    "repeat_interleave": lambda v: aten.repeat_interleave(v.x, 3, 2),
    "flip": lambda v: aten.flip(v.x, [-1]),
    "slice_scatter": lambda v: aten.slice_scatter(v.x, v.y[..., :3], 2, 1, 7, 2),
    "select_scatter": lambda v: aten.select_scatter(v.x, v.i.float(), 2, -3),
    "pad": lambda v: aten.pad(v.x, [2, -1, 1, 0], "constant", 3.0),
    "constant_pad_nd": lambda v: aten.constant_pad_nd(v.x, [-2, 1], 0.5),
    "roll": lambda v: aten.roll(v.x, [3, -2], [2, 1]),
}

FILLED: Rules = {
    "to": lambda v: aten.to(v.x, torch.bfloat16),
    "_to_copy": lambda v: aten._to_copy(v.x, dtype=torch.int32),
    "convert_element_type": lambda v: torch.ops.prims.convert_element_type(v.i, torch.float32),
    "type_as": lambda v: aten.type_as(v.i, v.x),
    "arange": lambda v: aten.arange(v.T),
    "full": lambda v: aten.full([v.T, 2], 1.5),
    "zeros": lambda v: aten.zeros([v.T], dtype=torch.int64),
    "ones": lambda v: aten.ones([2, v.T]),
    "empty": lambda v: aten.empty([v.T]).masked_fill(v.i[0] >= 0, 0.0),
    "empty_strided": lambda v: aten.empty_strided([v.T, 2], [2, 1]).masked_fill(v.i[0, :, None] >= 0, 0.0),
    "zeros_like": lambda v: aten.zeros_like(v.x),
    "ones_like": lambda v: aten.ones_like(v.x, dtype=torch.bool),
    "empty_like": lambda v: aten.empty_like(v.x).masked_fill(v.x == v.x, 0.0),
    "new_zeros": lambda v: aten.new_zeros(v.x, [v.T, 3]),
    "new_ones": lambda v: aten.new_ones(v.i, [v.T, 3]),
    "new_empty": lambda v: aten.new_empty(v.i, [3]) * 0 + v.i[:, :1],
    "full_like": lambda v: aten.full_like(v.x, -2),
    "new_full": lambda v: aten.new_full(v.x, [2, v.T], 7),
    "scalar_tensor": lambda v: aten.scalar_tensor(2.5) * v.x,
    "copy": lambda v: aten.copy(v.x, v.vector),
    "fill": lambda v: aten.fill(v.x, 2),
    "zero": lambda v: aten.zero(v.x) + v.x,
    "tril": lambda v: aten.tril(v.i.float().mT @ v.i.float(), 1),
    "triu": lambda v: aten.triu(v.i.float().mT @ v.i.float(), -1),
}

INDICES: Rules = {
    "embedding": lambda v: aten.embedding(v.matrix, v.i % 6),
    "index_select": lambda v: aten.index_select(v.x, 2, torch.tensor([6, 0, 6])),
    "index": lambda v: v.x[:, :, torch.tensor([[3], [1]])],
    "gather": lambda v: aten.gather(v.x, 2, v.i[..., None] % 8),
    "scatter": lambda v: aten.scatter(v.x, 2, v.i[..., None] % 8, 5.0),
    "scatter_add": lambda v: aten.scatter_add(v.x, 2, (v.i[..., None] + torch.tensor([0, 3, 0])) % 8, v.y),
    "index_add": lambda v: aten.index_add(v.x[0], 0, v.i[0] % 3, v.y[0]),
    "index_put": lambda v: aten.index_put(v.x, [v.odd], v.vector),
    "one_hot": lambda v: aten.one_hot(v.i % 5, 5),
    "sort": lambda v: torch.cat(aten.sort(v.x), -1),
    "argsort": lambda v: aten.argsort(v.x.round(), -1, True),
    "bucketize": lambda v: aten.bucketize(v.x.round(), torch.tensor([-1.0, 0.0, 0.0, 1.5])),
    "searchsorted": lambda v: aten.searchsorted(torch.tensor([-1.0, 0.0, 1.0]), v.x.round(), right=True),
    "where": lambda v: aten.where(v.seen, v.x, v.y),
    "masked_fill": lambda v: aten.masked_fill(v.x, v.seen, -1e4),
    "pow": lambda v: aten.pow(v.x, 3),
    "clamp": lambda v: aten.clamp(v.x, -0.5, 0.25),
    "clip": lambda v: aten.clip(v.x, None, 0.25),
    "clamp_min": lambda v: aten.clamp_min(v.x, 0.1),
    "clamp_max": lambda v: aten.clamp_max(v.x, 0.1),
    "bitwise_not": lambda v: aten.bitwise_not(v.i),
    "logical_not": lambda v: aten.logical_not(v.seen),
    "dropout": lambda v: aten.dropout(v.x, 0.5, False),
    "detach_": lambda v: aten.detach_(v.x * 2),
    "log_sigmoid": lambda v: aten.log_sigmoid(v.x),
}

REDUCTIONS: Rules = {
    "sum": lambda v: aten.sum(v.x, [0, 2], True),
    "mean": lambda v: aten.mean(v.x, [-1]),
    "any": lambda v: aten.any(v.seen, -1),
    "all": lambda v: aten.all(v.seen, 2, True),
    "argmax": lambda v: aten.argmax(v.x, -1),
    "amax": lambda v: aten.amax(v.x, [-1], True),
    "amin": lambda v: aten.amin(v.x, [1, 2]),
    "max": lambda v: aten.max(v.x, 2, True)[0],
    "min": lambda v: aten.min(v.x, 2)[1],
    "var": lambda v: aten.var(v.x, [-1], correction=0, keepdim=True),
    "var_mean": lambda v: torch.cat(aten.var_mean(v.x, [-1], correction=1, keepdim=True), -1),
    "linalg_vector_norm": lambda v: (
        aten.linalg_vector_norm(v.x, 2, [-1], True) + aten.linalg_vector_norm(v.x, 1, [-1], True)
    ),
    "norm": lambda v: aten.norm(v.x, 2, [-1]),
    "cumsum": lambda v: aten.cumsum(v.x, 1),
    "diff": lambda v: aten.diff(v.i, 1, -1, v.i[:, :1] - 1),
    "softmax": lambda v: aten.softmax(v.x, -1),
    "_softmax": lambda v: aten._softmax(v.x, -1, False),
    "log_softmax": lambda v: aten.log_softmax(v.x, 2),
    "_log_softmax": lambda v: aten._log_softmax(v.x, 2, False),
    "logsumexp": lambda v: aten.logsumexp(v.x, [-1]),
    "topk": lambda v: aten.topk(v.x, 3)[0],
}

SORTING: Rules = {
    "sort": lambda v: aten.sort(v.i[0] % 5, stable=True, dim=-1)[1],
    "argsort": lambda v: aten.argsort(v.x, stable=True, descending=True),
    "histc": lambda v: aten.histc((v.i % 6).float(), 6, 0, 5),
    "index_put": lambda v: aten.index_put(v.i[0], [torch.tensor([1, 0])], v.i[0, :2] * 2),
    "grouped_mm_fallback": lambda v: torch.ops.transformers.grouped_mm_fallback(
        v.x[0, :2], torch.stack([v.square, v.square + 1]), torch.tensor([1, 2])
    ),
}

PRODUCTS: Rules = {
    "linear": lambda v: aten.linear(v.x, v.matrix, v.vector[:6]),
    "matmul": lambda v: aten.matmul(v.x, v.square),
    "bmm": lambda v: aten.bmm(v.x, v.x.mT),
    "mm": lambda v: aten.mm(v.x[0], v.square),
    "addmm": lambda v: aten.addmm(v.vector, v.x[0], v.square, beta=0.5, alpha=2),
    "baddbmm": lambda v: aten.baddbmm(v.x, v.x, v.square[None], beta=0, alpha=0.5),
    "einsum": lambda v: aten.einsum("btd,ed->bte", [v.x, v.matrix]),
    "conv1d": lambda v: (
        aten.conv1d(v.x.mT, v.square[:, None, :3], v.vector, padding=[1], dilation=[1], groups=8)
        + aten.conv1d(v.x.mT, v.square[:, :, None], v.vector)
        + aten.conv1d(v.x.mT, v.square.reshape(8, 4, 2)[..., :1], v.vector, groups=2)
    ),
    "outer": lambda v: aten.outer(v.i[0].float(), v.vector),
    "layer_norm": lambda v: aten.layer_norm(v.x, [8], v.vector, v.vector, 1e-3),
    "rms_norm": lambda v: aten.rms_norm(v.x, [8], v.vector, 1e-3),
    "scaled_dot_product_attention": lambda v: aten.scaled_dot_product_attention(
        v.x[None], v.y[None], v.x[None], None, 0.0, True
    ),
}

TABLE: Rules = ELEMENTWISE | VIEWS | FILLED | INDICES | REDUCTIONS | SORTING | PRODUCTS
ELSEWHERE = {"float", "half", "bfloat16", "int", "long", "bool", "lift_fresh", "narrow_scatter", "_grouped_mm"}
"""Names that torch.export replaces (by `to`, `lift_fresh_copy`), and other frontends or changes in place need, and
torch's own grouped product, which takes bfloat16 alone."""

FORMS: Rules = {
    "add with alpha": lambda v: torch.add(v.x, v.y, alpha=-3),
    "any of numbers": lambda v: (v.x * v.seen).any(-1),
    "all of integers": lambda v: (v.i[..., None] % 3).all(-1, True),
    "rsub with a number": lambda v: 1 - v.x,
    "integers and numbers": lambda v: v.i * 0.5 + 1,
    "integers and floats": lambda v: v.i[..., None] + v.x,
    "booleans and numbers": lambda v: v.odd * 2,
    "a number to a power": lambda v: 2.0**v.x,
    "integers divided": lambda v: v.i / 3,
    "integers divided down": lambda v: -v.i // 3,
    "divided down": lambda v: torch.div(v.x, v.y, rounding_mode="floor"),
    "integers cut": lambda v: torch.div(-v.i, 3, rounding_mode="trunc"),
    "integers to a float function": lambda v: torch.sin(v.i),
    "the tanh gelu": lambda v: nn.functional.gelu(v.x, approximate="tanh"),
    "softplus with beta": lambda v: nn.functional.softplus(v.x, beta=2, threshold=1),
    "leaky relu with a slope": lambda v: nn.functional.leaky_relu(v.x, 0.3),
    "clamp by a tensor": lambda v: torch.clamp(v.x, min=v.y),
    "where of numbers": lambda v: torch.where(v.seen, 1.0, 0.0),
    "where of a number": lambda v: torch.where(v.seen, v.x, -1e9),
    "masked by a tensor": lambda v: v.x.masked_fill(v.seen, torch.tensor(3.0)),
    "float, int, bool": lambda v: (v.x.int() + v.x.long()).float() + v.x.bool(),
    "to another's dtype": lambda v: v.i.to(v.x),
    "a range with bounds": lambda v: torch.arange(3, v.T + 3),
    "a range with a step": lambda v: torch.arange(0, 8, 2, dtype=torch.float32),
    "a range of floats": lambda v: torch.arange(0.5, 4, 0.5),
    "a range as i32": lambda v: torch.arange(v.T, dtype=torch.int32),
    "full of truth": lambda v: torch.full((v.T, v.T), True).tril(),
    "triu above the diagonal": lambda v: torch.full((v.T, v.T), float("-inf")).triu(1),
    "a view over the sequence": lambda v: v.x.view(1, -1, 4, 2),
    "squeeze everything": lambda v: v.x[None].squeeze(),
    "slices from the end": lambda v: v.x[:, :-1] * v.x[:, 1:],
    "the last position": lambda v: v.x[:, -1],
    "the last two positions": lambda v: v.x[:, -2:],
    "unequal chunks": lambda v: torch.cat(v.x.chunk(3, -1)[1:], -1),
    "joined dtypes": lambda v: torch.cat([v.x, v.i[..., None], v.i[..., None]], -1),
    "joined to nothing": lambda v: torch.cat([v.x.new_empty(0), v.x], -2),
    "stacked at the front": lambda v: torch.stack([v.i, v.i]),
    "repeats of the sequence": lambda v: v.i.repeat_interleave(2),
    "look-ups side by side": lambda v: v.square[v.i % 8, v.i % 3],
    "look-ups inside": lambda v: v.x[:, torch.arange(v.T)],
    "look-ups from the end": lambda v: v.square[-1 - v.i % 8],
    "a scattered number": lambda v: aten.scatter(v.x, -1, v.y.topk(3)[1], 0.5),
    "scattered integers in place": lambda v: torch.zeros(1, v.T, 8, dtype=torch.long).scatter_(2, v.y.topk(3)[1], 1),
    "sorted numbers of a row": lambda v: torch.sort(v.x)[0],
    "a histogram of numbers": lambda v: torch.histc(v.x, bins=10, min=-2, max=3),
    "take along positions": lambda v: torch.gather(v.x, 1, torch.zeros_like(v.i)[..., None].expand(-1, -1, 8)),
    "sum of truths": lambda v: v.seen.sum(-1),
    "sum as another type": lambda v: v.x.sum(-1, dtype=torch.float64),
    "sum of everything": lambda v: v.x.sum(),
    "argmax of everything": lambda v: v.x.argmax(),
    "argmax that keeps": lambda v: v.x.argmax(-1, keepdim=True),
    "the largest of everything": lambda v: v.x.max(),
    "the larger": lambda v: torch.max(v.x, v.y),
    "the place of the largest": lambda v: v.x.max(-1)[1],
    "the smallest": lambda v: v.x.min(-1, keepdim=True)[0],
    "an unbiased variance": lambda v: v.x.var(-1),
    "a biased variance": lambda v: v.x.var(-1, unbiased=False),
    "a running sum of truths": lambda v: v.odd.cumsum(-1),
    "a running sum as another type": lambda v: v.i.cumsum(-1, dtype=torch.float32),
    "differences": lambda v: v.x.diff(dim=1),
    "softmax in another type": lambda v: torch.softmax(v.x.bfloat16(), -1, dtype=torch.float32),
    "logsumexp that keeps": lambda v: torch.logsumexp(v.x, (1, 2), keepdim=True),
    "places of candidates": lambda v: v.y.topk(2, dim=-1)[1],
    "scattered values": lambda v: v.x.scatter(-1, v.x.argsort(-1)[..., :3], v.y),
    "a sort along an inner dimension": lambda v: v.x.view(1, v.T, 2, 4).sort(2, descending=True)[0],
    "sorted places of equals": lambda v: torch.sort(v.x.round(), dim=-1, stable=True)[1],
    "numbers at a bound": lambda v: torch.bucketize(v.x.round(), torch.tensor([-1.0, 0.0, 1.0]), right=True),
    "a wrapped rotation": lambda v: v.x.roll(-11, -1),
    "a number where a mask is": lambda v: torch.where(v.seen, v.x, v.y).index_put([v.seen], torch.tensor(2.0)),
    "complex numbers turned": lambda v: turned(v),
    "sums over two letters": lambda v: torch.einsum("bthd,hdk->btk", v.x.view(1, v.T, 2, 4), v.square.view(2, 4, 8)),
    "scores by letters": lambda v: torch.einsum("bthd,bshd->bhts", v.x.view(1, v.T, 2, 4), v.y.view(1, v.T, 2, 4)),
    "letters without sums": lambda v: torch.einsum("btd,e->betd", v.x, v.vector),
    "a letter summed alone": lambda v: torch.einsum("btd,te->b", v.x, v.y[0]),
    "three operands": lambda v: torch.einsum("btd,de,ef->btf", v.x, v.square, v.square),
    "a matrix and a vector": lambda v: v.x @ v.vector,
    "a vector and a matrix": lambda v: v.vector @ v.square,
    "products of stacks": lambda v: v.x.view(1, v.T, 2, 4).transpose(1, 2) @ v.square[:4],
    "a linear layer without bias": lambda v: nn.functional.linear(v.x, v.matrix),
    "a layer norm without weight": lambda v: nn.functional.layer_norm(v.x, (8,)),
    "a layer norm with a bias alone": lambda v: nn.functional.layer_norm(v.x, (8,), None, v.vector),
    "an rms norm without weight": lambda v: nn.functional.rms_norm(v.x, (8,)),
    "attention with a mask": lambda v: attention(v, attn_mask=torch.ones(v.T, v.T, dtype=torch.bool).tril()),
    "attention with a bias": lambda v: attention(v, attn_mask=torch.full((v.T, v.T), -1.0).triu(1)),
    "attention with a scale": lambda v: attention(v, scale=0.3),
    "attention of groups": lambda v: nn.functional.scaled_dot_product_attention(
        v.x.view(1, v.T, 4, 2).transpose(1, 2),
        v.y.view(1, v.T, 4, 2).transpose(1, 2)[:, :2],
        v.y.view(1, v.T, 4, 2).transpose(1, 2)[:, 2:],
        is_causal=True,
        enable_gqa=True,
    ),
}


def turned(v: Values) -> Tensor:
    """Rotary embeddings in complex numbers."""
    angles = torch.outer(torch.arange(v.T).float(), torch.tensor([1.0, 0.1, 0.01, 0.001]))
    turns = torch.polar(torch.ones_like(angles), angles)[None]
    return torch.view_as_real(torch.view_as_complex(v.x.view(1, v.T, 4, 2)) * turns).flatten(2)


def attention(v: Values, **keywords: Any) -> Tensor:
    heads = [each.view(1, v.T, 2, 4).transpose(1, 2) for each in (v.x, v.y, v.x)]
    return nn.functional.scaled_dot_product_attention(*heads, **keywords)
