"""A module of MLIR that cannot be compiled is refused in one sentence that names the thing and the remedy."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from forerun import errors
from forerun.build import lower
from forerun.frontends.mlir_text import read_module
from forerun.frontends.source import open_source
from tests.frontends.mlir_cases import FOLDER, Decoder

LINALG = """
#map = affine_map<(d0) -> (d0)>
module {
  func.func @main(%arg0: tensor<1x?xi64>) -> tensor<1x?x32xf32> {
    %c1 = arith.constant 1 : index
    %dim = tensor.dim %arg0, %c1 : tensor<1x?xi64>
    %0 = tensor.empty(%dim) : tensor<1x?x32xf32>
    %1 = linalg.fill ins(%c1 : index) outs(%0 : tensor<1x?x32xf32>) -> tensor<1x?x32xf32>
    return %1 : tensor<1x?x32xf32>
  }
}
"""
SHORT = """
module {
  func.func @main(%arg0: !torch.vtensor<[1,?],si64>) -> !torch.vtensor<[1,?],si64> {
    %0 = torch.aten.neg %arg0 : !torch.vtensor<[1,?],si64> -> !torch.vtensor<[1,?],si64>
    return %0 : !torch.vtensor<[1,?],si64>
  }
}
"""
SPELLED, NAMED = ((FOLDER / name).read_text(encoding="utf-8") for name in ("spelled.mlir", "named.mlir"))
OPERATIONS, _, RESOURCES = SPELLED.partition("{-#")
BLOB = next(line for line in SPELLED.splitlines() if line.strip().startswith("torch_tensor_32_8_torch.float32:"))
TOKENS = "!torch.vtensor<[1,?],si64>"


def hand_written(
    operation: str = '"torch.aten.neg"(%arg0)', takes: str = TOKENS, result: str = TOKENS, more: str = ""
) -> str:
    """A module of one operation."""
    return f"""
"builtin.module"() ({{
  "func.func"() <{{function_type = ({takes}) -> {result}, sym_name = "main"}}> ({{
  ^bb0(%arg0: {takes}{more}):
    %0 = {operation} : ({takes}) -> {result}
    "func.return"(%0) : ({result}) -> ()
  }}) : () -> ()
}}) : () -> ()
"""


def two_functions(text: str) -> str:
    body = text[text.index('  "func.func"') : text.rindex("}) : () -> ()")]
    return f'"builtin.module"() ({{\n{body.replace("main", "one")}{body.replace("main", "other")}}}) : () -> ()\n'


REFUSED: dict[str, tuple[type[errors.ForerunError], str, str]] = {
    "operations that end early": (errors.CorruptFileError, OPERATIONS[:6000], "cannot be parsed as MLIR"),
    "resources that end early": (errors.CorruptFileError, SPELLED[:-2000], "ends within its resources"),
    "half a byte": (
        errors.CorruptFileError,
        SPELLED.replace(BLOB, BLOB[:-2] + '"'),
        "a damaged resource torch_tensor_32",
    ),
    "a resource that is short": (errors.CorruptFileError, SPELLED.replace(BLOB, BLOB[:-9] + '"'), "has 1024"),
    "linalg": (errors.NotAModelError, LINALG, "is in the linalg dialect"),
    "tosa": (errors.NotAModelError, LINALG.replace("linalg.fill", "tosa.fill"), "is in the tosa dialect"),
    "another dialect": (errors.NotAModelError, 'x = 1\n"gpu.module"() : () -> ()', "is in the gpu dialect"),
    "no operation": (errors.NotAModelError, "forward\n", "holds no operations of MLIR"),
    "nothing": (errors.NotAModelError, "", "holds no operations of MLIR"),
    "several functions": (errors.NotAModelError, two_functions(OPERATIONS), "holds the functions one, other"),
    "a resource that is missing": (
        errors.NotAModelError,
        SPELLED.replace(BLOB + "\n", ""),
        "no data for the weight torch_tensor_32_8_torch.float32",
    ),
    "an operation without a rule": (
        errors.UnsupportedOperationError,
        NAMED.replace("torch.aten.silu", "torch.aten.erfinv"),
        "The operation torch.aten.erfinv at ",
    ),
    "an operator of another library": (
        errors.UnsupportedOperationError,
        hand_written('"torch.operator"(%arg0) <{name = "torch.mine.neg"}>'),
        "The operation torch.mine.neg has no rule",
    ),
    "an operator without a name": (
        errors.UnsupportedOperationError,
        hand_written('"torch.operator"(%arg0)'),
        "no rule",
    ),
    "an operation that changes its operand": (
        errors.UnsupportedOperationError,
        hand_written('"torch.aten.relu_"(%arg0)'),
        "The operation torch.aten.relu_ has no rule",
    ),
    "an operand that is missing": (
        errors.UnsupportedOperationError,
        hand_written('"torch.aten.mul.Tensor"(%arg0)'),
        "form",
    ),
    "a literal without a value": (
        errors.UnsupportedOperationError,
        hand_written('"torch.vtensor.literal"(%arg0)'),
        "form",
    ),
    "a type that does not follow": (
        errors.UnsupportedOperationError,
        hand_written(result="!torch.vtensor<[1,4],si64>"),
        "was imported as !spec.tensor<[1, T], i64>, but gives !torch.vtensor<[1,4],si64>",
    ),
    "a fixed length": (
        errors.TraceError,
        hand_written(takes="!torch.vtensor<[1,11],si64>"),
        "fixes the sequence length at 11",
    ),
    "batches": (errors.TraceError, hand_written(takes="!torch.vtensor<[?,?],si64>"), "of shape [?, ?]"),
    "an input that is no tensor": (errors.TraceError, hand_written(takes="!torch.int"), "of shape []"),
    "two inputs": (errors.TraceError, hand_written(more=f", %arg1: {TOKENS}"), "2 inputs and 1 outputs"),
    "no logits": (errors.TraceError, hand_written(), "returns [1, T] for input_ids of shape [1, T]"),
    "a length that the trace excludes": (
        errors.TraceError,
        NAMED.replace("max_val = 64", "max_val = 32"),
        "at most 32",
    ),
}


def imported(path: Path, max_length: int = 48) -> None:
    open_source(path).import_(max_length)


def refusal(error: type[errors.ForerunError], call: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in message
    return message


def written(folder: Path, text: str | bytes) -> Path:
    """The file, with the decoder's weights beside it."""
    path = folder / "module.mlir"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    save_file(dict(Decoder().state_dict()), folder / "module.safetensors")
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused(case: str, tmp_path: Path) -> None:
    error, text, words = REFUSED[case]
    assert text not in (SPELLED, NAMED), "the case changes nothing"
    message = refusal(error, lambda: imported(written(tmp_path, text)))
    assert words in message
    assert "module" in message or "operation" in message


def test_an_operation_is_named_with_its_source_line(tmp_path: Path) -> None:
    text = NAMED.replace("torch.aten.silu", "torch.aten.erfinv")
    message = refusal(errors.UnsupportedOperationError, lambda: imported(written(tmp_path, text)))
    assert "The operation torch.aten.erfinv at mlir_cases.py:" in message
    assert "CONTRIBUTING.md" in message


def test_bytecode_and_binary_files_are_told_apart(tmp_path: Path) -> None:
    assert "bytecode" in refusal(errors.NotAModelError, lambda: imported(written(tmp_path, b"ML\xefR\x01\x02")))
    assert "is not text" in refusal(errors.CorruptFileError, lambda: imported(written(tmp_path, b"\xff\xfe\x00")))


def test_weights_must_be_there(tmp_path: Path) -> None:
    path = written(tmp_path, NAMED)
    (tmp_path / "module.safetensors").unlink()
    message = refusal(errors.NotAModelError, lambda: imported(path))
    assert "embedding.weight" in message
    assert "module.safetensors, which does not exist" in message


@pytest.mark.parametrize("change", [lambda x: x[:5].clone(), lambda x: x.to(torch.bfloat16)], ids=["shape", "dtype"])
def test_weights_must_fit(tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = written(tmp_path, NAMED)
    weights = Decoder().state_dict()
    save_file({**weights, "head.weight": change(weights["head.weight"])}, tmp_path / "module.safetensors")
    message = refusal(errors.NotAModelError, lambda: imported(path))
    assert "head.weight" in message
    assert "module.safetensors" in message


def test_a_damaged_safetensors_file_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, NAMED)
    (tmp_path / "module.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    assert "module.safetensors cannot be read" in refusal(errors.CorruptFileError, lambda: imported(path))


def test_other_dtypes_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, NAMED.replace("f32>", "bf16>").replace("xf32", "xbf16"))
    halves = {name: each.to(torch.bfloat16) for name, each in Decoder().state_dict().items()}
    save_file(halves, tmp_path / "module.safetensors")
    assert "export the model again in float32" in refusal(errors.InvalidOptionError, lambda: imported(path))
    assert "GGUF" in refusal(errors.InvalidOptionError, lambda: open_source(path, native=True))


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    causal = NAMED.replace('"torch.constant.bool"() <{value = true}>', '"torch.constant.bool"() <{value = false}>')
    assert causal != NAMED
    with pytest.raises(errors.LookAheadError, match="attends to later positions"):
        lower(written(tmp_path, causal), max_length=48)


def test_the_short_form_needs_torch_mlir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch_mlir", "torch_mlir.ir", "torch_mlir.dialects.torch"):  # other tests may have imported them
        monkeypatch.setitem(sys.modules, name, None)
    message = refusal(errors.NotAModelError, lambda: imported(written(tmp_path, SHORT)))
    assert "pip install 'forerun[torch-mlir]'" in message


def test_a_damaged_short_form_is_refused() -> None:
    pytest.importorskip("torch_mlir")
    message = refusal(errors.CorruptFileError, lambda: read_module(SHORT.replace("-> !", "-> "), "short.mlir"))
    assert "short.mlir cannot be parsed as MLIR (line " in message


def test_an_object_of_another_dialect_is_refused() -> None:
    ir = pytest.importorskip("torch_mlir.ir")
    with ir.Context():
        module = ir.Module.parse("func.func @main() { return }")
        assert "the torch-mlir module is in the func dialect" in refusal(
            errors.NotAModelError, lambda: open_source(module)
        )
