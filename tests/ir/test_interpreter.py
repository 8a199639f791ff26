"""Every operation against an independent formula."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from forerun import ir
from forerun.ir import FUNCTIONS, REDUCTIONS
from tests.ir.build import function, no_weights, run, tensor

RANDOM = torch.Generator().manual_seed(0)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=RANDOM)


def close(result: torch.Tensor, expected: Any) -> None:
    np.testing.assert_allclose(result.numpy(), np.asarray(expected), rtol=2e-5, atol=2e-6)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def error_function(x: np.ndarray) -> np.ndarray:
    grid = np.linspace(0, 1, 20001)
    return 2 / np.sqrt(np.pi) * x * np.trapezoid(np.exp(-((x[..., None] * grid) ** 2)), grid, axis=-1)


FLOATS: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "floor_div": lambda x, y: np.floor(x / y),
    "remainder": lambda x, y: x - y * np.floor(x / y),
    "pow": lambda x, y: np.where(True, np.abs(x) ** y, 0),
    "max": np.maximum,
    "min": np.minimum,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "neg": lambda x: -x,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "exp": np.exp,
    "expm1": lambda x: np.exp(x.astype(np.float64)) - 1,
    "exp2": lambda x: 2.0**x,
    "log": np.log,
    "log1p": lambda x: np.log(1 + x.astype(np.float64)),
    "log2": np.log2,
    "sqrt": lambda x: x**0.5,
    "rsqrt": lambda x: x**-0.5,
    "reciprocal": lambda x: 1 / x,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": lambda x: 2 * sigmoid(2 * x) - 1,
    "erf": error_function,
    "sigmoid": sigmoid,
    "relu": lambda x: np.where(x > 0, x, 0),
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * (1 + error_function(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "softplus": lambda x: np.log(1 + np.exp(x)),
    "log_sigmoid": lambda x: -np.log(1 + np.exp(-x)),
}
POSITIVE = {"log", "log1p", "log2", "sqrt", "rsqrt", "pow"}
BITS = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not}


def test_every_function_has_a_formula() -> None:
    assert FLOATS.keys() | BITS.keys() | {"where"} == FUNCTIONS.keys()


@pytest.mark.parametrize("name", FLOATS)
def test_functions(name: str) -> None:
    inputs = [numbers(3, 4), numbers(4)][: FUNCTIONS[name][0]]
    if name in ("eq", "ne"):
        inputs[1] = inputs[0][1]
    if name in POSITIVE:
        inputs[0] = inputs[0].abs() + 0.1
    (result,) = run(ir.Map, *inputs, function=name)
    close(result, FLOATS[name](*(each.numpy() for each in inputs)))


@pytest.mark.parametrize("name", BITS)
def test_functions_of_truth(name: str) -> None:
    inputs = [numbers(3, 4) > 0, numbers(4) > 0][: FUNCTIONS[name][0]]
    (result,) = run(ir.Map, *inputs, function=name)
    assert np.array_equal(result.numpy(), BITS[name](*(each.numpy() for each in inputs)))


def test_where() -> None:
    condition, x, y = numbers(3, 4) > 0, numbers(4), numbers(3, 1)
    (result,) = run(ir.Map, condition, x, y, function="where")
    close(result, np.where(condition, x, y))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", [name for name in REDUCTIONS if name not in ("any", "all", "argmax")])
def test_reductions(name: str, keep: bool) -> None:
    x = numbers(2, 3, 4)
    (result,) = run(ir.Reduce, x, function=name, dims=(0, 2), keep=keep)
    close(result, getattr(np, name)(x.numpy(), axis=(0, 2), keepdims=keep))


def test_reductions_to_truth_and_places() -> None:
    x = numbers(5, 3)
    for name in ("any", "all"):
        (result,) = run(ir.Reduce, x > -0.5, function=name, dims=(0,))
        assert np.array_equal(result.numpy(), getattr(np, name)(x.numpy() > -0.5, axis=0))
    (place,) = run(ir.Reduce, x, function="argmax", dims=(1,))
    assert np.array_equal(place.numpy(), x.numpy().argmax(1))


def test_constants_ranges_and_casts() -> None:
    assert run(ir.Constant, value=2.5, dtype="f32")[0].item() == 2.5
    assert run(ir.Iota, size="2*T-1", bindings={"T": 3})[0].tolist() == [0, 1, 2, 3, 4]
    assert run(ir.Cast, torch.tensor([1.9, -1.9]), dtype="i32")[0].tolist() == [1, -1]


def test_parameters_read_the_store() -> None:
    weight = numbers(2, 3)
    environment = ir.Environment({"w": weight}.__getitem__)
    read = ir.Parameter.make(symbol=ir.Symbol("w"), shape=(2, 3), dtype="f32").evaluate(environment)
    assert read is weight


def test_views() -> None:
    x = numbers(1, 5, 6)
    size = {"T": 5}
    array = x.numpy()
    close(run(ir.Reshape, x, shape=(5, 2, 3), bindings=size)[0], array.reshape(5, 2, 3))
    close(run(ir.Transpose, x, permutation=(2, 0, 1))[0], array.transpose(2, 0, 1))
    close(run(ir.Broadcast, x, shape=(4, 5, 6))[0], np.broadcast_to(array, (4, 5, 6)))
    close(run(ir.Slice, x, dim=1, start=1, stop=4, step=2)[0], array[:, 1:4:2])
    close(run(ir.Slice, x, dim=1, start=2, stop=5, bindings=size)[0], array[:, 2:5])
    close(run(ir.Concat, x, x, dim=1)[0], np.concatenate((array, array), 1))


def test_look_ups() -> None:
    table, rows, columns = numbers(7, 6, 5), torch.tensor([[3], [0]]), torch.tensor([1, 5, 1], dtype=torch.int32)
    close(run(ir.Gather, table, rows)[0], table.numpy()[rows.numpy()])
    close(run(ir.Gather, table, rows, columns)[0], table.numpy()[rows.numpy(), columns.numpy()])
    index = torch.tensor([[2, 0], [1, 1]])
    close(run(ir.TakeAlong, numbers(2, 3) * 0 + torch.arange(3.0), index, dim=1)[0], index.numpy())


def test_running_sums() -> None:
    x = torch.arange(6, dtype=torch.int32).reshape(2, 3)
    assert run(ir.Scan, x, dim=1)[0].tolist() == [[0, 1, 3], [3, 7, 12]]


def test_products() -> None:
    x, weight, bias = numbers(2, 3, 4), numbers(5, 4), numbers(5)
    close(run(ir.Linear, x, weight)[0], x.numpy() @ weight.numpy().T)
    close(run(ir.Linear, x, weight, bias)[0], x.numpy() @ weight.numpy().T + bias.numpy())
    close(run(ir.MatMul, x, weight.T.contiguous())[0], np.einsum("bij,kj->bik", x, weight))


def test_softmax() -> None:
    x = numbers(2, 3, 4)
    e = np.exp(x.numpy())
    close(run(ir.Softmax, x, dim=1)[0], e / e.sum(1, keepdims=True))


def test_the_lower_of_equal_candidates_comes_first() -> None:
    values, indices = run(ir.TopK, torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]), k=4, index_dtype="i32")
    assert values.tolist() == [[3.0, 3.0, 3.0, 2.0]]
    assert indices.tolist() == [[1, 2, 4, 3]]


def test_norms() -> None:
    x, weight, bias = numbers(3, 8), numbers(8), numbers(8)
    array = x.numpy()
    normed = array / np.sqrt((array**2).mean(-1, keepdims=True) + 1e-3)
    close(run(ir.RMSNorm, x, eps=1e-3)[0], normed)
    close(run(ir.RMSNorm, x, weight, eps=1e-3)[0], normed * weight.numpy())
    centred = array - array.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3)
    close(run(ir.LayerNorm, x, eps=1e-3)[0], normed)
    close(run(ir.LayerNorm, x, weight, bias, eps=1e-3)[0], normed * weight.numpy() + bias.numpy())


def test_rotary_turns_pairs_as_complex_numbers() -> None:
    x, angle = numbers(2, 5, 8), numbers(5, 4)
    tables = [torch.cat((each, each), -1) for each in (angle.cos(), angle.sin())]
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angle), angle)
    close(run(ir.Rotary, x, *tables)[0], torch.cat((turned.real, turned.imag), -1))


# --- attention --------------------------------------------------------------------------------------------------------

HEADS, GROUPS, LENGTH, WIDTH = 4, 2, 9, 8


def heads() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return numbers(1, HEADS, LENGTH, WIDTH), numbers(1, GROUPS, LENGTH, WIDTH), numbers(1, GROUPS, LENGTH, WIDTH)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, **keywords: Any) -> Any:
    return functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True, **keywords)


def triangle() -> torch.Tensor:
    return torch.ones(LENGTH, LENGTH).tril().bool()


def distances() -> torch.Tensor:
    return torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)


def test_attention_is_torchs() -> None:
    q, k, v = heads()
    close(run(ir.Attention, q, k, v, scale=0.3)[0], sdpa(q, k, v, scale=0.3))
    close(run(ir.Attention, q, k, v, scale=0.3, causal=True)[0], sdpa(q, k, v, is_causal=True, scale=0.3))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_a_mask(causal: bool) -> None:
    q, k, v = heads()
    mask = triangle() & ((numbers(LENGTH, LENGTH) > 0) | torch.eye(LENGTH).bool())
    result = run(ir.Attention, q, k, v, mask=mask, scale=1.0, causal=causal)[0]
    close(result, sdpa(q, k, v, mask, scale=1.0))
    added = numbers(HEADS, LENGTH, LENGTH).masked_fill(~triangle(), -torch.inf)
    close(run(ir.Attention, q, k, v, mask=added, scale=1.0)[0], sdpa(q, k, v, added, scale=1.0))


def test_attention_over_a_window() -> None:
    q, k, v = heads()
    first = (torch.arange(LENGTH) - 2).clamp(min=0)
    result = run(ir.Attention, q, k, v, first=first, scale=1.0, causal=True)[0]
    close(result, sdpa(q, k, v, triangle() & (distances() < 3), scale=1.0))


@pytest.mark.parametrize("by", ["key", "distance"])
@pytest.mark.parametrize("rows", [1, HEADS])
def test_attention_with_a_bias(by: str, rows: int) -> None:
    q, k, v = heads()
    table = numbers(rows, LENGTH + 3)
    result = run(ir.Attention, q, k, v, bias=table, scale=0.5, causal=True, bias_by=by)[0]
    index = torch.arange(LENGTH).expand(LENGTH, -1) if by == "key" else distances().clamp(min=0)
    close(result, sdpa(q, k, v, table[:, index].masked_fill(~triangle(), -torch.inf), scale=0.5))


def test_attention_with_capped_scores_and_sinks() -> None:
    q, k, v = heads()
    sinks = numbers(HEADS)
    result = run(ir.Attention, q, k, v, sinks=sinks, scale=0.5, softcap=1.5, causal=True)[0]
    repeated = [np.repeat(each.numpy(), 2, axis=1) for each in (k, v)]
    scores = 1.5 * np.tanh(np.einsum("bhid,bhjd->bhij", q.numpy(), repeated[0]) * 0.5 / 1.5)
    weights = np.exp(scores) * triangle().numpy()
    total = weights.sum(-1, keepdims=True) + np.exp(sinks.numpy())[:, None, None]
    close(result, np.einsum("bhij,bhjd->bhid", weights / total, repeated[1]))


# --- attention over a tree --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_tree_attention_is_attention_along_each_path(seed: int) -> None:
    """Random committed lengths, trees, slots and blocks: every row sees exactly its own path."""
    random = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    block, sequences = int(random.choice([1, 2, 4])), 2
    committed = random.integers(0, 9, sequences)
    rows_of = random.integers(1, 6, sequences)
    slots_in_all = 64
    free = list(random.permutation(slots_in_all // block))
    tables = (
        np.array([[free.pop() for _ in range(10)] for _ in range(sequences)], dtype=np.int32) if block < 4 else None
    )
    if tables is None:
        tables = np.array([[free.pop() for _ in range(4)] for _ in range(sequences)], dtype=np.int32)
    loose = [slot for each in free for slot in range(each * block, (each + 1) * block)]
    caches = [torch.full((slots_in_all, GROUPS, WIDTH), torch.nan) for _ in range(2)]
    positions, owners, bases, paths, histories = [], [], [], [], []
    for sequence in range(sequences):
        base = int(committed[sequence])
        kept = [tables[sequence, at // block] * block + at % block for at in range(base)]
        nodes: list[list[int]] = []
        for node in range(rows_of[sequence]):
            parent = int(random.integers(-1, node)) if node else -1
            nodes.append([*(nodes[parent] if parent >= 0 else []), int(loose.pop())])
        for path in nodes:
            positions.append(base + len(path) - 1)
            owners.append(sequence)
            bases.append(base)
            paths.append(path)
            histories.append([*kept, *path])
    written = sorted({int(slot) for each in histories for slot in each})
    for cache in caches:
        cache[written] = torch.randn(len(written), GROUPS, WIDTH, generator=generator)
    depth = max(len(each) for each in paths)
    padded = torch.tensor([each + [0] * (depth - len(each)) for each in paths], dtype=torch.int32)
    q = torch.randn(len(paths), HEADS, WIDTH, generator=generator)
    first = torch.tensor([max(0, position - 3) for position in positions])
    bias = torch.randn(HEADS, 32, generator=generator)
    history = (*(torch.tensor(each, dtype=torch.int32) for each in (positions, owners, bases)), padded)
    parameters = {"symbol": ir.Symbol("k"), "values": ir.Symbol("v"), "block": block, "value_dim": WIDTH, "scale": 0.4}
    inputs = (q, *history, torch.from_numpy(tables), first, bias)
    extra = {"bias_by": "distance", "states": {"k": caches[0], "v": caches[1]}}
    (result,) = run(ir.TreeAttention, *inputs, **parameters, **extra)
    for row, slots in enumerate(histories):
        key, value = (each[[int(slot) for slot in slots]].transpose(0, 1)[None] for each in caches)
        seen = torch.arange(len(slots)) >= first[row]
        mask = bias[:, torch.arange(len(slots)).flip(0)].masked_fill(~seen, -torch.inf)[:, None]
        expected = sdpa(q[row][None, :, None], key, value, mask, scale=0.4)
        close(result[row], expected[0, :, 0])


def test_writes_to_states_reach_their_slots() -> None:
    records, rows = torch.zeros(6, 1, 2), numbers(2, 1, 2)
    slots = torch.tensor([4, 1], dtype=torch.int32)
    assert run(ir.StateWrite, rows, slots, symbol=ir.Symbol("s"), states={"s": records}) == ()
    assert torch.equal(records[[4, 1]], rows)
    assert not records[[0, 2, 3, 5]].any()


def test_reads_of_states_give_their_slots() -> None:
    records, slots = numbers(4, 3), torch.tensor([2, 0, 2], dtype=torch.int32)
    parameters = {"symbol": ir.Symbol("s"), "shape": (3,), "dtype": "f32"}
    (read,) = run(ir.StateRead, slots, states={"s": records}, **parameters)
    assert torch.equal(read, records[[2, 0, 2]])


def test_reads_of_no_slot_give_zero() -> None:
    records, slots = numbers(4, 3), torch.tensor([[2, -1], [-1, 0]], dtype=torch.int32)
    parameters = {"symbol": ir.Symbol("s"), "shape": (3,), "dtype": "f32"}
    (read,) = run(ir.StateRead, slots, states={"s": records}, **parameters)
    zero = torch.zeros(3)
    assert torch.equal(read, torch.stack([torch.stack([records[2], zero]), torch.stack([zero, records[0]])]))


def test_a_window_holds_the_values_before() -> None:
    x = numbers(4, 2)
    (window,) = run(ir.Window, x, count=3)
    padded = torch.cat([torch.zeros(3, 2), x])
    assert torch.equal(window, padded.unfold(0, 3, 1)[:4].transpose(1, 2))


def test_ancestors_lie_in_blocks_below_the_base_and_on_the_path_above() -> None:
    tables = torch.tensor([[2, 0], [5, 4]], dtype=torch.int32)
    positions, sequences, bases = (torch.tensor(each, dtype=torch.int32) for each in ([5, 1, 6], [0, 1, 1], [6, 2, 4]))
    paths = torch.tensor([[0, 0, 0], [0, 0, 0], [90, 91, 92]], dtype=torch.int32)
    (found,) = run(ir.Ancestors, positions, sequences, bases, paths, tables, count=3, block=4)
    assert found.tolist() == [[10, 11, 0], [-1, -1, 20], [23, 90, 91]]


# --- functions --------------------------------------------------------------------------------------------------------


def test_functions_take_sizes_from_their_inputs() -> None:
    def body(build: ir.Builder, x: ir.SSAValue) -> tuple[ir.SSAValue, ...]:
        return build.add(ir.Iota, size="T"), build.slice(x, 1, 0, "T-1")

    module = function({"x": tensor([1, "T"])}, body)
    range_, head = ir.evaluate(module, "forward", [numbers(1, 6)], ir.Environment(no_weights))
    assert range_.tolist() == [0, 1, 2, 3, 4, 5]
    assert head.shape == (1, 5)
    with pytest.raises(ValueError, match="size 2 where 1"):
        ir.evaluate(module, "forward", [numbers(2, 6)], ir.Environment(no_weights))


def test_derived_weights_are_evaluated_when_asked_for() -> None:
    def body(build: ir.Builder) -> ir.SSAValue:
        return build.map("exp", build.add(ir.Parameter, symbol=ir.Symbol("w"), shape=(2,), dtype="f32"))

    module = function({}, body, "constants")
    stored = {"w": numbers(2)}
    for name, derived in (("w", None), ("derived.0", 0)):
        weight = ir.Weight.make(symbol=ir.Symbol(name), shape=(2,), dtype="f32", derived=derived)
        module.body.block.add_op(weight)
    ir.verify(module)
    read = ir.with_derived(module, stored.__getitem__)
    assert read("w") is stored["w"]
    close(read("derived.0"), stored["w"].exp())
    assert torch.equal(read("derived.0"), read("derived.0"))
