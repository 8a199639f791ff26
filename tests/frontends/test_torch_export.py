"""Tests every ATen rule against torch, through torch.export, and what the importer refuses, by name and line."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from forerun import ir
from forerun.errors import InvalidOptionError, TooLongError, TraceError, UnsupportedOperationError
from forerun.frontends.aten import RULES
from forerun.frontends.torch_export import import_program, import_programs
from forerun.passes.base import PassContext
from forerun.passes.pipeline import run_pipeline, step_pipeline
from tests.compiled import tvm_step
from tests.frontends.aten_cases import (
    ELSEWHERE,
    FORMS,
    TABLE,
    VOCABULARY,
    WIDTH,
    Expression,
    Values,
    check,
    exported,
    operators,
)


@pytest.mark.parametrize("name", TABLE)
def test_a_rule_gives_what_torch_gives(name: str) -> None:
    module = Expression(TABLE[name])
    program = exported(module)
    assert name in operators(program)
    check(module, program)


def test_every_rule_is_in_the_table() -> None:
    assert TABLE.keys() | ELSEWHERE == RULES.keys()


@pytest.mark.parametrize("name", FORMS)
def test_other_forms_of_a_rule(name: str) -> None:
    module = Expression(FORMS[name])
    check(module, exported(module, lowest=3))


# --- the importer -----------------------------------------------------------------------------------------------------


def imported(expression: Callable[[Values], Any]) -> ir.ModuleOp:
    return import_program(exported(Expression(expression), lowest=4))


def test_an_operator_without_a_rule_is_named_with_its_line() -> None:
    with pytest.raises(UnsupportedOperationError) as error:
        imported(lambda v: torch.special.bessel_j0(v.x))
    message = str(error.value)
    assert "The operation special_bessel_j0 at aten_cases.py:" in message
    assert "has no rule" in message
    assert "aten_*.py" in message
    assert "CONTRIBUTING.md" in message


REFUSED: dict[str, tuple[Callable[[Values], Any], str]] = {
    "a norm of another order": (lambda v: torch.linalg.vector_norm(v.x, 3, -1), "a norm of order 3"),
    "the smallest candidates": (lambda v: v.x.topk(2, largest=False)[0], "a topk of the smallest"),
    "indices apart": (lambda v: v.x[:, torch.tensor([0]), :][torch.tensor([0]), :, torch.tensor([1])], "stand apart"),
    "positions backwards": (lambda v: v.x.flip(1), "a flip of a named dimension"),
    "a norm over two dimensions": (lambda v: nn.functional.layer_norm(v.x.view(1, v.T, 2, 4), (2, 4)), "several dim"),
    "a mean counted by the length": (lambda v: v.x.var(1), "counts the named dimension T"),
    "a sort of the sequence": (lambda v: v.i.sort(1)[0], "the named dimension"),
    "a convolution in steps": (lambda v: nn.functional.conv1d(v.x.mT, v.square[:, :, None], stride=2), "a stride"),
    "places of the sequence": (lambda v: v.x.scatter(1, v.i[..., None], 1.0), "places of the named dimension"),
    "a list where a mask is": (lambda v: v.i.index_put([v.odd], v.i[0]), "a list of values by a mask"),
    "diagonals by letters": (lambda v: torch.einsum("btd,dd->bt", v.x, v.square), "the equation"),
    "every second position": (lambda v: v.x[:, ::2], "cannot step over the named dimension"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_forms_without_a_rule_are_refused(name: str) -> None:
    expression, reason = REFUSED[name]
    with pytest.raises(UnsupportedOperationError, match=reason) as error:
        imported(expression)
    assert "aten_cases.py:" in str(error.value)


def test_a_change_in_place_is_a_new_value() -> None:
    def expression(v: Values) -> Tensor:
        total = v.x + 1
        before = total * 2
        total.mul_(3)
        total += v.y
        return before + total.relu_()

    module = Expression(expression)
    check(module, exported(module))


def through_a_view(v: Values) -> Tensor:
    total = v.x + 1
    total[..., :4].mul_(2)
    return total


def through_a_part(v: Values) -> Tensor:
    total = v.x + 1
    left, _ = total.chunk(2, -1)
    left.mul_(2)
    return total


def seen_by_a_view(v: Values) -> Tensor:
    total = v.x + 1
    flat = total.view(v.T, 8).t()
    total.mul_(2)
    return flat


def parts_of_a_new_tensor(v: Values) -> Tensor:
    """Keys that are joined by writing into an empty tensor."""
    joined = v.x.new_empty(1, v.T, 12)
    joined[..., :8].copy_(v.x)
    joined[..., 8:].copy_(v.y[..., :4])
    return joined


def a_place(v: Values) -> Tensor:
    total = v.x + 1
    total[..., 0] = 5.0
    total[..., 1::3] += v.y[..., :3]
    return total


def a_part_of_a_part(v: Values) -> Tensor:
    total = v.x + 1
    rows = total.view(1, v.T, 2, 4).transpose(2, 3)
    before = total * 1
    rows[..., 1].unsqueeze(-1)[:, :, 2:].mul_(3)
    return torch.cat([total, rows.flatten(2), before], -1)


def pieces(v: Values) -> Tensor:
    total = v.x + 1
    for number, each in enumerate(total.view(1, v.T, 4, 2).unbind(2)):
        each.mul_(number)
    first, *_, last = total.split([3, 4, 1], -1)
    first.add_(last)
    return total


def where_a_mask_is(v: Values) -> Tensor:
    tokens = v.i.clone()
    tokens[v.odd] = 0
    return tokens


def through_the_same_values(v: Values) -> Tensor:
    total = v.x + 1
    total.contiguous().mul_(2)
    return total


def from_outside_a_region(v: Values) -> Tensor:
    total = v.x + 1
    with torch.no_grad():
        total.mul_(2)
    return total


CHANGES = [
    through_a_view,
    through_a_part,
    seen_by_a_view,
    parts_of_a_new_tensor,
    a_place,
    a_part_of_a_part,
    pieces,
    where_a_mask_is,
]


@pytest.mark.parametrize("expression", CHANGES, ids=lambda each: each.__name__)
def test_a_change_in_place_is_seen_by_all_views(expression: Callable[[Values], Any]) -> None:
    module = Expression(expression)
    check(module, exported(module))


def through_what_may_be_a_copy(v: Values) -> Tensor:
    total = v.x + 1
    total.transpose(1, 2).reshape(8, v.T).mul_(2)
    return total


def through_several_places(v: Values) -> Tensor:
    total = v.x + 1
    total.diagonal(0, 1, 2).mul_(2)
    return total


@pytest.mark.parametrize(
    "expression", [through_what_may_be_a_copy, through_several_places], ids=lambda each: each.__name__
)
def test_a_change_through_another_view_is_refused(expression: Callable[[Values], Any]) -> None:
    with pytest.raises(UnsupportedOperationError, match=r"aten_cases\.py:|test_torch_export\.py:"):
        imported(expression)


def test_a_change_in_place_of_the_same_values_is_right() -> None:
    module = Expression(through_the_same_values)
    check(module, exported(module))


def test_a_change_in_place_of_a_copy_in_another_type_is_right() -> None:
    def expression(v: Values) -> Tensor:
        wide = v.x.to(torch.float64)
        wide.mul_(2)
        return wide + v.x

    module = Expression(expression)
    check(module, exported(module))


def test_a_change_in_place_from_within_a_region_is_refused() -> None:
    """torch.export puts code that runs without gradients into a graph of its own."""
    program = exported(Expression(from_outside_a_region), gradients=True)
    assert any(node.op == "get_attr" for node in program.graph.nodes)
    with pytest.raises(UnsupportedOperationError, match="changes a tensor that comes from outside its region"):
        import_program(program)


def test_a_change_in_place_of_a_view_that_is_all_that_is_left() -> None:
    def expression(v: Values) -> Tensor:
        rows = (v.x + 1).view(v.T, 8)
        rows.mul_(2)
        return rows.sin()

    module = Expression(expression)
    check(module, exported(module))


def test_nested_regions_are_imported_in_place() -> None:
    def expression(v: Values) -> Tensor:
        with torch.no_grad():
            inner = v.x.exp()
        return inner + v.y

    module = Expression(expression)
    program = exported(module, gradients=True)
    assert any(node.op == "get_attr" for node in program.graph.nodes)
    check(module, program)


def test_values_carry_their_names_and_lines() -> None:
    forward = ir.functions(imported(lambda v: v.x.tanh()))["forward"]
    (tanh,) = [each for each in forward.body if isinstance(each, ir.Map) and each.function == "tanh"]
    assert tanh.result.name_hint == "tanh"
    assert "aten_cases.py" in str(tanh.location)


def test_weights_keep_their_types_and_names() -> None:
    module = imported(lambda v: nn.functional.linear(v.x, v.matrix))
    shapes = {name: each.type.dims for name, each in ir.weights(module).items()}
    assert shapes == {"table": (VOCABULARY, WIDTH), "more": (VOCABULARY, WIDTH), "matrix": (6, WIDTH)}


def test_numbers_in_the_source_are_constants() -> None:
    module = imported(lambda v: v.x * torch.tensor(0.5))
    assert "value = 0.5" in ir.print_ir(module)


def test_two_results_are_refused() -> None:
    with pytest.raises(TraceError, match="1 inputs and 2 outputs"):
        imported(lambda v: (v.x, v.y))


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
            return input_ids * mask

    length = torch.export.Dim("length", min=2, max=64)
    example = torch.arange(11)[None]
    program = torch.export.export(Two(), (example, example), dynamic_shapes=({1: length}, {1: length}))
    with pytest.raises(TraceError, match="2 inputs and 1 outputs"):
        import_program(program)


def test_a_fixed_length_is_refused() -> None:
    program = torch.export.export(Expression(lambda v: v.x), (torch.arange(11)[None],))
    with pytest.raises(TraceError, match="The traced program fixes the sequence length at 11"):
        import_program(program)


# --- several programs in one module -----------------------------------------------------------------------------------


class Encoder(nn.Module):
    """The mean embedding of a source text, by a decoder's own table."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.embedding = table
        self.mix = nn.Linear(table.embedding_dim, table.embedding_dim)

    def forward(self, source: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.mix(self.embedding(source))
        return x.mean(1) * scale, x.sum(1)


class Decoder(nn.Module):
    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.mix = nn.Linear(table.embedding_dim, table.num_embeddings)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.mix(self.table(input_ids))


def test_functions_of_one_module_share_weights() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(11, 6)
    decoder, encoder = Decoder(table).eval(), Encoder(table).eval()
    length = torch.export.Dim("length", min=2, max=64)
    tokens, source, scale = torch.randint(11, (1, 5)), torch.randint(11, (1, 7)), torch.randn(6)
    programs = {
        "forward": torch.export.export(decoder, (tokens,), dynamic_shapes=({1: length},)),
        "encode": torch.export.export(encoder, (source, scale), dynamic_shapes=({1: length}, None)),
    }
    module, weights = import_programs(programs)
    ir.verify(module)
    assert sorted(weights) == ["encode.mix.bias", "encode.mix.weight", "mix.bias", "mix.weight", "table.weight"]
    assert weights.keys() == ir.weights(module).keys()
    encode = ir.functions(module)["encode"].signature
    assert [(each.name, each.dims, each.dtype) for each in encode.arguments] == [
        ("source", (1, "S"), "i64"),
        ("scale", (6,), "f32"),
    ]
    environment = ir.Environment(weights.__getitem__)
    found = ir.evaluate(module, "encode", [source, scale], environment)
    for one, other in zip(found, encoder(source, scale), strict=True):
        torch.testing.assert_close(one, other)
    (logits,) = ir.evaluate(module, "forward", [tokens], environment)
    torch.testing.assert_close(logits, decoder(tokens))


def test_another_function_of_a_module_is_an_entry_of_the_executable() -> None:
    torch.manual_seed(1)
    table = nn.Embedding(11, 6)
    length = torch.export.Dim("length", min=2, max=64)
    decoder, encoder = Decoder(table).eval(), Encoder(table).eval()
    source, scale = torch.randint(11, (1, 9)), torch.randn(6)
    module, weights = import_programs(
        {
            "forward": torch.export.export(decoder, (source,), dynamic_shapes=({1: length},)),
            "encode": torch.export.export(encoder, (source, scale), dynamic_shapes=({1: length}, None)),
        }
    )
    run_pipeline(module, step_pipeline(16, 8, 16, 4), PassContext(weights.__getitem__, 64))
    executable = tvm_step(module, weights.__getitem__, max_rows=16, max_outputs=8, max_length=64)
    state = executable.new_state(2)
    found = executable.run("encode", state, {"source": source.numpy(), "scale": scale.numpy()})
    for one, other in zip(found, encoder(source, scale), strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other.detach())
    with pytest.raises(TooLongError, match="S = 65 exceeds max_length 64"):
        executable.run("encode", state, {"source": np.zeros((1, 65), np.int32), "scale": scale.numpy()})


def test_the_sizes_of_an_entrys_dimensions_fit_each_other() -> None:
    class Joined(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.cat([x, y], 0), y[1:]

    torch.manual_seed(1)
    tokens, one, other = torch.randint(11, (1, 9)), torch.randn(4), torch.randn(7)
    length, count = torch.export.Dim("length", min=2, max=64), torch.export.Dim("count", min=2, max=30)
    decoder = Decoder(nn.Embedding(11, 6)).eval()
    programs = {
        "forward": torch.export.export(decoder, (tokens,), dynamic_shapes=({1: length},)),
        "encode": torch.export.export(Joined(), (one, other), dynamic_shapes=({0: count}, {0: 2 * count - 1})),
    }
    module, weights = import_programs(programs)
    run_pipeline(module, step_pipeline(16, 8, 16, 4), PassContext(weights.__getitem__, 64))
    executable = tvm_step(module, weights.__getitem__, max_rows=16, max_outputs=8, max_length=64)
    state = executable.new_state(2)

    def run(x: int, y: int) -> Any:
        return executable.run("encode", state, {"x": np.ones(x, np.float32), "y": np.ones(y, np.float32)})

    assert [len(each) for each in run(64, 127)] == [191, 126]  # S is within max_length
    with pytest.raises(InvalidOptionError, match=r"@encode takes y \[2\*S-1\], not \[8\] \(.*2\*S-1 = 7"):
        run(4, 8)
    with pytest.raises(TooLongError, match="S = 65 exceeds max_length 64"):
        run(65, 129)
