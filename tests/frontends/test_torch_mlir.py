"""Modules of the torch dialect arrive with the tokens and the logits of the models that they come from."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import forerun
from forerun.frontends.source import open_source
from forerun.runtime.certify import certify
from tests.frontends.mlir_cases import FOLDER, Decoder, Logits, export, generic, named_module, torch_dialect
from tests.models import FAMILIES, POSITIONS

PROMPT = [7, 20, 31, 5, 9, 31, 5, 9, 14]
NEW_TOKENS = 24
TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def installed() -> bool:
    """Whether torch-mlir is here."""
    try:
        import torch_mlir  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.fixture
def torch_mlir(installed: bool) -> None:
    if not installed:
        pytest.skip("torch-mlir is not installed")


def named(folder: Path, weights: dict[str, Tensor] | None = None) -> Path:
    """The file without data, with weights beside it: the decoder's own, or those given."""
    path = folder / "named.mlir"
    path.write_text((FOLDER / "named.mlir").read_text(encoding="utf-8"), encoding="utf-8")
    save_file(dict(Decoder().state_dict()) if weights is None else weights, folder / "named.safetensors")
    return path


def compile_plainly(source: Any, max_length: int = 48) -> forerun.CompiledModel:
    return forerun.compile(source, "autoregressive", target="reference", max_length=max_length)


def greedy(model: nn.Module) -> tuple[list[int], Tensor]:
    """The model's own greedy tokens, and the logits that chose them."""
    tokens, rows = [*PROMPT], list[Tensor]()
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            rows.append(model(torch.tensor([tokens]))[0, -1])
            tokens.append(int(rows[-1].argmax()))
    return tokens[len(PROMPT) :], torch.stack(rows)


def agrees(compiled: forerun.CompiledModel, model: nn.Module) -> None:
    tokens, logits = greedy(model)
    found = compiled.generate(PROMPT, NEW_TOKENS, return_logits=True)
    assert found.token_ids == tokens
    assert found.logits is not None
    torch.testing.assert_close(torch.as_tensor(found.logits), logits, atol=TOLERANCE, rtol=0)


# --- text, with and without torch-mlir --------------------------------------------------------------------------------


def test_a_file_has_its_weights_among_its_resources() -> None:
    agrees(compile_plainly(FOLDER / "spelled.mlir"), Decoder())


def test_a_file_has_its_weights_in_safetensors_of_the_same_stem(tmp_path: Path) -> None:
    other = Decoder(seed=1)
    agrees(compile_plainly(named(tmp_path, dict(other.state_dict()))), other)


def test_other_weights_beside_a_kept_model_are_another_model(tmp_path: Path) -> None:
    for seed in (0, 1):
        model = Decoder(seed)
        named(tmp_path, dict(model.state_dict()))
        compiled = forerun.compile(tmp_path / "named.mlir", "autoregressive", target="cpu", max_length=48)
        assert compiled.generate(PROMPT, NEW_TOKENS).token_ids == greedy(model)[0]


def test_a_file_read_twice_has_the_same_weights() -> None:
    """Readers of MLIR rename the key of a resource that they have seen before."""
    for _ in range(2):
        source = open_source(FOLDER / "spelled.mlir")
        _, weights = source.import_(48)
        assert {each for each in weights if re.search(r"_\d+_\d+$", each.partition("float32")[2])} == set()


@pytest.mark.parametrize("strategy", ["tree_spec", "prompt_lookup"])
def test_the_contract_holds(strategy: str) -> None:
    compiled = forerun.compile(FOLDER / "spelled.mlir", strategy, target="cpu", max_length=48)
    plain = forerun.with_strategy(compiled, "autoregressive")
    fast, slow = (each.generate(PROMPT, NEW_TOKENS, return_logits=True) for each in (compiled, plain))
    assert fast.token_ids == slow.token_ids
    assert fast.has_bits_of(slow)
    report = certify(compiled.executable, cases=5, seed=1)
    assert report.exact, str(report)


# --- what torch-mlir exports ------------------------------------------------------------------------------------------

EXPORTED = ("llama", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "opt", "bloom", "phi3", "olmo2")
RAW = ("llama", "gpt2", "falcon")
"""Families that arrive as torch-mlir imports them; all of them arrive as it simplifies them."""
CASES = [(each, "torch") for each in EXPORTED] + [(each, "raw") for each in RAW]


@pytest.mark.usefixtures("torch_mlir")
@pytest.mark.parametrize(("family", "form"), CASES)
def test_families_arrive_as_torch_mlir_exports_them(family: str, form: str) -> None:
    model = Logits(FAMILIES[family]())
    agrees(compile_plainly(torch_dialect(export(model), form), POSITIONS // 8), model)


@pytest.mark.usefixtures("torch_mlir")
@pytest.mark.parametrize("family", [pytest.param("qwen3", marks=pytest.mark.slow), "gpt2"])
def test_exported_families_keep_the_contract(family: str) -> None:
    module = torch_dialect(export(Logits(FAMILIES[family]())))
    compiled = forerun.compile(module, forerun.TreeSpec(policy=forerun.Fixed(12)), target="cpu", max_length=64)
    plain = forerun.with_strategy(compiled, "autoregressive")
    fast, slow = (each.generate(PROMPT, NEW_TOKENS, return_logits=True) for each in (compiled, plain))
    assert fast.has_bits_of(slow)
    report = certify(compiled.executable, cases=5, seed=1)
    assert report.exact, str(report)


@pytest.mark.usefixtures("torch_mlir")
def test_the_short_form_is_read_by_torch_mlir(tmp_path: Path) -> None:
    path = tmp_path / "short.mlir"
    path.write_text(str(torch_dialect(export(Decoder()))), encoding="utf-8")
    agrees(compile_plainly(path), Decoder())


@pytest.mark.usefixtures("torch_mlir")
def test_the_files_are_what_torch_mlir_writes() -> None:
    def operations(text: str) -> list[str]:
        return re.findall(r'^ *(?:%\w+ = )?"([\w.]+)"', text, re.MULTILINE)

    for name, module in (("named.mlir", named_module(Decoder())), ("spelled.mlir", torch_dialect(export(Decoder())))):
        assert operations(generic(module)) == operations((FOLDER / name).read_text(encoding="utf-8"))
