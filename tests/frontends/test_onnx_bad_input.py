"""Bad ONNX files: one sentence that names the file or the node and the remedy, never a traceback from inside onnx."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

import forerun
from forerun.cli import main
from forerun.errors import (
    CorruptFileError,
    ForerunError,
    InvalidOptionError,
    LookAheadError,
    NotAModelError,
    TraceError,
    UnsupportedOperationError,
)
from forerun.frontends.source import open_source
from tests.frontends.onnx_graphs import WIDTH, embedded, numbers, saved

MATRIX = numbers(WIDTH, 16)
HEAD = "logits = MatMul(x, w)", {"w": MATRIX}


def expect(error: type[ForerunError], path: Path, *words: str, **options: Any) -> None:
    """Importing the file fails with one sentence that has every word."""
    with pytest.raises(error) as caught:
        open_source(path, **options).import_(64)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert word in message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(embedded(*HEAD), tmp_path)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A model whose weights are in model.onnx_data."""
    path = tmp_path / "model.onnx"
    onnx.save_model(embedded(*HEAD), path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    return path


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.5, 0.9, 0.999])
def test_a_file_that_ends_early(share: float, path: Path) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    expect(CorruptFileError, path, str(path), "export it again")


def test_bytes_that_are_no_model(path: Path) -> None:
    for content in (b"GGUF" * 99, b"\x00" * 99, b"{}", np.random.default_rng(0).bytes(999)):
        path.write_bytes(content)
        expect(CorruptFileError, path, str(path))


def test_functions_that_call_themselves(path: Path) -> None:
    model = onnx.load_model(path)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    inner = helper.make_node("Again", ["x"], ["y"], domain="own")
    model.functions.append(helper.make_function("own", "Again", ["x"], ["y"], [inner], opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("Again", ["logits"], ["more"], domain="own"))
    onnx.save_model(model, path)
    expect(CorruptFileError, path, str(path), "without an end")


def test_missing_data(outside: Path) -> None:
    (outside.parent / "model.onnx_data").unlink()
    expect(CorruptFileError, outside, "model.onnx_data", "not beside it")


def test_data_that_end_early(outside: Path) -> None:
    data = outside.parent / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:-4])
    expect(CorruptFileError, outside, "model.onnx_data", "ends before")


@pytest.mark.parametrize("name", ["../model.onnx_data", "/etc/hostname", "a/../../b", "..\\b", "C:\\b", ""])
def test_data_that_lie_outside_the_folder(name: str, outside: Path) -> None:
    model = onnx.load_model(outside, load_external_data=False)
    for tensor in model.graph.initializer:
        next(each for each in tensor.external_data if each.key == "location").value = name
    outside.write_bytes(model.SerializeToString())
    expect(CorruptFileError, outside, repr(name), "outside its folder")


@pytest.mark.parametrize(("key", "value"), [("offset", "-8"), ("offset", "much"), ("offset", "99999999")])
def test_data_at_a_place_that_is_none(key: str, value: str, outside: Path) -> None:
    model = onnx.load_model(outside, load_external_data=False)
    for tensor in model.graph.initializer:
        del tensor.external_data[1:]
        tensor.external_data.add(key=key, value=value)
    outside.write_bytes(model.SerializeToString())
    expect(CorruptFileError, outside)


def test_a_weight_with_too_few_numbers(path: Path) -> None:
    model = onnx.load_model(path)
    model.graph.initializer[1].raw_data = model.graph.initializer[1].raw_data[:-4]
    path.write_bytes(model.SerializeToString())
    expect(CorruptFileError, path, "damaged tensor w", "export the model again")


def test_a_value_that_no_node_gives(tmp_path: Path) -> None:
    model = embedded(*HEAD)
    del model.graph.initializer[1]
    expect(CorruptFileError, saved(model, tmp_path), "'w'", "no node gives")


def test_an_old_opset(tmp_path: Path) -> None:
    expect(NotAModelError, saved(embedded(*HEAD, opset=11), tmp_path), "opset 11", "opset 17 or later")
    expect(NotAModelError, saved(embedded(*HEAD, opset=99), tmp_path), "opset 99", "newer onnx package")


def graph(signature: str, body: str = "logits = Gather(table, input_ids)") -> Any:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> decoder {signature} {{ {body} }}')
    model.graph.initializer.append(numpy_helper.from_array(numbers(16, 16), "table"))
    return model


LAST = """
    z = Constant<value_ints = [-1]>()
    x = Gather<axis = 1>(input_ids, z)
    logits = Gather(table, x)"""
IDS = "(int64[1,T] input_ids"
LOGITS = "=> (float[1,T,16] logits)"
SIGNATURES: dict[str, tuple[type[ForerunError], Any, list[str]]] = {
    "images": (NotAModelError, graph(f"(float[1,T,16] pixel_values) {LOGITS}", "logits = Abs(pixel_values)"),
               ["pixel_values", "no input_ids"]),
    "an encoder's memory": (NotAModelError, graph(f"{IDS}, float[1,S,16] encoder_hidden_states) {LOGITS}"),
                            ["encoder_hidden_states", "no decoder of text"]),
    "hidden states": (NotAModelError, graph(f"{IDS}) => (float[1,T,16] last_hidden_state)",
                                            "last_hidden_state = Gather(table, input_ids)"),
                      ["last_hidden_state", "no logits"]),
    "a fixed length": (TraceError, graph(f"(int64[1,8] input_ids) {LOGITS}"), ["fixes the sequence length at 8"]),
    "a batch": (TraceError, graph(f"(int64[2,T] input_ids) {LOGITS}"), ["[2, T]", "[1, T]"]),
    "a vector of tokens": (TraceError, graph(f"(int64[T] input_ids) {LOGITS}"), ["[1, T]"]),
    "a past of any form": (TraceError, graph(f"{IDS}, float[B,H,P,D] past_key_0) {LOGITS}"),
                           ["past_key_0", "fixed numbers of heads"]),
    "one row of logits": (TraceError, graph(f"{IDS}) {LOGITS}", LAST), ["all positions"]),
    "logits without tokens": (NotAModelError, graph(f"{IDS}) {LOGITS}", "logits = Identity(table)"), ["do not depend"]),
    "float16 tokens": (TraceError, graph(f"(uint8[1,T] input_ids) {LOGITS}"), ["uint8"]),
}  # fmt: skip


@pytest.mark.parametrize("case", SIGNATURES)
def test_a_model_of_another_form_is_named(case: str, tmp_path: Path) -> None:
    error, model, words = SIGNATURES[case]
    expect(error, saved(model, tmp_path), *words)


BRANCHES = """
    {condition}
    logits = If (c) <
        then_branch = one () => (a) {{ a = MatMul(x, w) }},
        else_branch = other () => (b) {{ b = MatMul(x, v) }}
    >"""
BOTH = {"w": MATRIX, "v": numbers(WIDTH, 16, seed=2)}


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (
            "f = ReduceSum(x) d = Greater(f, f) k = Constant<value_ints = [1]>() c = Reshape(d, k)",
            ["If", "by the values"],
        ),
        (
            "s = Shape<start = 1, end = 2>(x) k = Constant<value_ints = [16]>() c = Greater(s, k)",
            ["Greater", "sequences of 2 to 64"],
        ),
    ],
)
def test_control_flow_that_depends_on_the_tokens(condition: str, words: list[str], tmp_path: Path) -> None:
    path = saved(embedded(BRANCHES.format(condition=condition), BOTH), tmp_path)
    expect(UnsupportedOperationError, path, *words)


@pytest.mark.parametrize(("least", "chosen"), [(0, "w"), (99, "v")])
def test_control_flow_that_every_sequence_decides(least: int, chosen: str, tmp_path: Path) -> None:
    condition = f"s = Shape<start = 1, end = 2>(x) k = Constant<value_ints = [{least}]>() c = Greater(s, k)"
    weights = open_source(saved(embedded(BRANCHES.format(condition=condition), BOTH), tmp_path)).import_(64)[1]
    assert set(weights) == {"table", chosen}


def test_a_loop(tmp_path: Path) -> None:
    model = embedded("logits = Identity(x)", {})
    value = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    body = helper.make_graph([], "body", [], [value])
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Loop", ["", "", "table"], ["logits"], body=body))
    expect(UnsupportedOperationError, saved(model, tmp_path), "Loop", "while it runs")


@pytest.mark.parametrize(
    "body",
    [
        "y = com.microsoft.MultiHeadAttention<num_heads = 4>(x, x, x)\n logits = MatMul(y, w)",
        "y = Attention<q_num_heads = 4, kv_num_heads = 4>(x, x, x)\n logits = MatMul(y, w)",
        "y = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 2, causal = 0>(x, x, x)\n"
        "logits = MatMul(y, w)",
        "k = Constant<value_ints = [1]>() m = ReduceMean(x, k) y = Add(x, m)\n logits = MatMul(y, w)",
    ],
)
def test_a_model_that_looks_ahead(body: str, tmp_path: Path) -> None:
    path = saved(embedded(body, {"w": MATRIX}), tmp_path)
    with pytest.raises(LookAheadError, match="cannot be decoded position by position"):
        forerun.compile(path, "autoregressive", target="reference", max_length=32)


def test_a_missing_package(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    expect(NotAModelError, path, 'pip install "forerun[onnx]"')


def test_options_that_an_onnx_model_does_not_have(path: Path) -> None:
    expect(InvalidOptionError, path, "GGUF file", native=True)
    expect(InvalidOptionError, path, "float32", dtype="bfloat16")


def test_a_folder_with_several_models(path: Path) -> None:
    for name in ("a", "b"):
        path.with_name(f"{name}.onnx").write_bytes(path.read_bytes())
    assert open_source(path.parent).name == "model"
    path.unlink()
    with pytest.raises(NotAModelError, match=r"a\.onnx, b\.onnx.*pass the file"):
        open_source(path.parent)


def test_a_damaged_configuration(path: Path) -> None:
    for name in ("config.json", "generation_config.json", "genai_config.json", "tokenizer.json"):
        (path.parent / name).write_text("{")
        with pytest.raises(CorruptFileError, match=name):
            open_source(path)
        (path.parent / name).unlink()


def test_the_command_line_prints_the_sentence(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(b"")
    assert main(["generate", str(path), "--token-ids", "1,2"]) == 2
    assert "ends early" in capsys.readouterr().err
