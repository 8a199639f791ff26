"""Models that exporters have written as ONNX arrive as what they were before: same logits, same tokens, certified."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import compose, helper
from transformers import PreTrainedModel

import forerun
from forerun import ir
from forerun.build import lower
from forerun.cli import main
from forerun.errors import InvalidOptionError
from forerun.frontends.source import open_source
from forerun.progress import SilentProgress
from forerun.runtime.certify import certify
from tests.frontends.onnx_files import export, export_cached, export_script
from tests.frontends.onnx_graphs import inputs_of, of_forward, of_onnxruntime, session
from tests.models import FAMILIES, VOCABULARY
from tests.test_prebuilt import word_tokenizer

PROMPT = [7, 200, 31, 5, 99, 31, 5, 99, 140]
TEXT = torch.randint(3, VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(1))
NEW_TOKENS = 24
QUICK = ("llama", "gemma3_text", "gpt2")
SLOW = (
    *("qwen2", "qwen3", "phi3", "gemma2", "granite", "olmo2", "opt", "gpt_neox", "falcon", "mistral", "mpt", "cohere"),
    *("bloom", "gptj"),
)
SCRIPTED = ("llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "opt", "bloom", "falcon", "phi", "stablelm")
CACHED = ("llama", "gpt2", "bloom", "mistral")


def require_model(path: Path, model: PreTrainedModel, target: str = "reference") -> forerun.CompiledModel:
    """The file gives the model's logits; compiled, it gives the tokens of the model compiled without a file."""
    with torch.no_grad():
        torch.testing.assert_close(of_forward(path, TEXT), model(TEXT).logits, rtol=1e-4, atol=1e-4)
    compiled = forerun.compile(path, "autoregressive", target=target, max_length=64)
    plain = forerun.compile(model, "autoregressive", target="reference", max_length=64)
    assert compiled.generate(PROMPT, NEW_TOKENS).token_ids == plain.generate(PROMPT, NEW_TOKENS).token_ids
    return compiled


@pytest.mark.parametrize("family", [*QUICK, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_a_model_exported_by_tracing_arrives(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    compiled = require_model(export(model, tmp_path / "model.onnx"), model, "cpu")
    fast = forerun.with_strategy(compiled, forerun.TreeSpec(policy=forerun.Fixed(12)))
    assert fast.generate(PROMPT, NEW_TOKENS).token_ids == compiled.generate(PROMPT, NEW_TOKENS).token_ids
    report = certify(compiled.executable, cases=4, seed=1)
    assert report.exact, str(report)


@pytest.mark.parametrize("family", SCRIPTED)
def test_a_model_exported_as_torchscript_arrives(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    require_model(export_script(model, tmp_path / "model.onnx"), model)


@pytest.mark.parametrize("family", CACHED)
def test_a_model_exported_with_its_cache_arrives(family: str, tmp_path: Path) -> None:
    """The text of an empty past is that of a cache, which onnxruntime runs here token by token."""
    model = FAMILIES[family]()
    path = export_cached(model, tmp_path / "model.onnx")
    require_model(path, model)
    running, past, rows = session(path), None, []
    for position in range(TEXT.shape[1]):
        names = ["logits", *(each.name for each in running.get_outputs() if each.name.startswith("present"))]
        logits, *present = running.run(names, inputs_of(running, TEXT[:, position : position + 1], past))
        past = dict(zip((each.replace("present", "past_key_values") for each in names[1:]), present, strict=True))
        rows.append(torch.from_numpy(logits))
    torch.testing.assert_close(of_forward(path, TEXT), torch.cat(rows, 1), rtol=1e-4, atol=1e-4)


def test_a_merged_decoder_takes_the_branch_without_a_past(tmp_path: Path) -> None:
    model = FAMILIES["llama"]()
    cached = onnx.load_model(export_cached(model, tmp_path / "cached.onnx"))
    plain = onnx.load_model(export_script(model, tmp_path / "plain.onnx"))
    branches = [_branch(each, prefix) for each, prefix in ((cached, "with/"), (plain, "without/"))]
    chosen = helper.make_node("If", ["use_cache_branch"], ["logits"], then_branch=branches[0], else_branch=branches[1])
    flag = helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1])
    graph = helper.make_graph([chosen], "merged", [*cached.graph.input, flag], [cached.graph.output[0]])
    (tmp_path / "merged").mkdir()
    path = tmp_path / "merged" / "decoder_model_merged.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=cached.opset_import, ir_version=8), path)
    require_model(path.parent, model)
    torch.testing.assert_close(of_forward(path, TEXT), of_onnxruntime(path, TEXT), rtol=1e-4, atol=1e-4)


def _branch(model: Any, prefix: str) -> Any:
    """A graph that takes its inputs from the graph around it, and gives the logits only."""
    graph = compose.add_prefix(model, prefix, rename_inputs=False).graph
    del graph.input[:]
    del graph.output[1:]
    return graph


def test_grouped_queries_norms_and_rotary_are_raised(tmp_path: Path) -> None:
    """The cache holds keys unrepeated, as that of the module does, whichever exporter wrote the file."""
    model = FAMILIES["llama"]()
    found = []
    for number, write in enumerate((export, export_script, export_cached)):
        module = lower(write(model, tmp_path / f"{number}.onnx"), max_length=64).module
        text = ir.print_ir(module)
        forward, step = (text.partition("spec.func @step")[at] for at in (0, 2))
        counts = [forward.count(f"= spec.{each}(") for each in ("rotary", "rms_norm", "attention", "softmax", "matmul")]
        found.append((counts, step.count("spec.tree_attention"), *(each.shape for each in ir.states(module).values())))
    assert found[0] == found[1] == found[2]
    assert found[0] == ([4, 5, 2, 0, 0], 2, *[(2, 16)] * 4)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a tiny llama."""
    return export_script(FAMILIES["llama"](), tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.fixture
def folder(scripted: Path, tmp_path: Path) -> Path:
    """A directory with the file and a tokenizer, which a test may change."""
    path = tmp_path / "tiny"
    path.mkdir()
    shutil.copy(scripted, path)
    word_tokenizer().save_pretrained(path)
    return path


def test_what_lies_beside_a_file_is_used(folder: Path) -> None:
    source = open_source(folder / "model.onnx")
    assert source.tokenizer is not None
    assert (source.eos_token_ids, source.limit) == ((), None)
    (folder / "genai_config.json").write_text('{"model": {"eos_token_id": [7, 9], "context_length": 48}}')
    source = open_source(folder)
    assert source.eos_token_ids == (7, 9)
    assert source.limit is not None
    assert source.limit.positions == 48
    (folder / "config.json").write_text('{"eos_token_id": 3, "max_position_embeddings": 40}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [5]}')
    source = open_source(folder)
    assert source.eos_token_ids == (5,)
    assert source.limit is not None
    assert source.limit.positions == 40
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.5}')
    assert open_source(folder).defaults == {"repetition_penalty": 1.5}
    (folder / "generation_config.json").write_text('{"guidance_scale": 1.5}')
    with pytest.raises(InvalidOptionError, match="guidance_scale"):
        open_source(folder)
    assert open_source(folder, generation_config=None).eos_token_ids == (7, 9)


def test_a_folder_of_graphs_has_its_tokenizer_around_it(folder: Path) -> None:
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "decoder_model.onnx")
    for path in (folder, folder / "onnx" / "decoder_model.onnx"):
        assert open_source(path).tokenizer is not None


def test_the_command_line_takes_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--strategy", "autoregressive", "--max-length", "48", "--max-new-tokens", "4", "--target", "reference"]
    assert main(["generate", str(folder / "model.onnx"), "--prompt", "one two three", "--json", *options]) == 0
    assert len(json.loads(capsys.readouterr().out)["token_ids"]) == 4
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert main(["generate", str(folder / "model.onnx"), "--prompt", "one two three", *options]) == 2
    assert "--token-ids" in capsys.readouterr().err


def test_a_kept_model_depends_on_the_weights_beside_it(scripted: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(onnx.load_model(scripted), path, save_as_external_data=True, location="model.onnx_data")

    def compiled() -> tuple[bool, list[int]]:
        progress = SilentProgress()
        model = forerun.compile(path, "autoregressive", max_length=32, progress=progress)
        return "import" in progress.seconds, model.generate(PROMPT, 8).token_ids

    assert compiled() == (True, first := compiled()[1])
    assert compiled() == (False, first)
    data = tmp_path / "model.onnx_data"
    numbers = np.fromfile(data, np.float32)
    (-numbers[::-1]).tofile(data)
    assert compiled()[0], "weights in another file have changed"


WRITERS: dict[str, Callable[[PreTrainedModel, Path], Path]] = {"traced": export, "scripted": export_script}


@pytest.mark.parametrize("writer", WRITERS)
def test_weights_in_another_file_are_the_same(writer: str, tmp_path: Path) -> None:
    path = WRITERS[writer](FAMILIES["gpt2"](), tmp_path / "inside.onnx")
    onnx.save_model(onnx.load_model(path), tmp_path / "outside.onnx", save_as_external_data=True, location="w.data")
    inside, outside = (open_source(each).import_(64)[1] for each in (path, tmp_path / "outside.onnx"))
    assert inside.keys() == outside.keys()
    assert all(torch.equal(inside[name], outside[name]) for name in inside)
