"""What may be opened as a source, how it is traced, and what error each bad source gets."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.export.graph_signature import InputKind

from forerun import ir
from forerun.errors import (
    CorruptFileError,
    ForerunError,
    InvalidOptionError,
    NotAModelError,
    SourceNotFoundError,
    TraceError,
)
from forerun.frontends.source import open_source
from forerun.frontends.weights import program_weights
from forerun.progress import SilentProgress, open_progress
from tests.models import FAMILIES, LAYERS, VOCABULARY, build, encoder

MAX_LENGTH = 64
PROMPT = torch.randint(3, VOCABULARY, (1, 20), generator=torch.Generator().manual_seed(1))


class Bigram(nn.Module):
    """The smallest language model: the logits of a token follow from that token."""

    def __init__(self, wrapped: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY)
        self.wrapped = wrapped

    def forward(self, input_ids):
        logits = self.head(self.embedding(input_ids))
        return SimpleNamespace(logits=logits) if self.wrapped else logits


@pytest.fixture(scope="module")
def llama():
    return FAMILIES["llama"]()


@pytest.fixture(scope="module")
def directory(llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny-llama")
    llama.save_pretrained(path)
    return path


@pytest.fixture
def damaged(directory, tmp_path):
    """A copy of the directory that a test may damage."""
    path = tmp_path / "model"
    shutil.copytree(directory, path)
    return path


def expect(error: type[ForerunError], source: object, *words: str, **options: str) -> None:
    """Opening the source fails with one sentence that contains every word."""
    with pytest.raises(error) as caught:
        open_source(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gemma2", "gpt2", "gpt_neo", "bloom", "falcon"])
def test_a_trace_computes_what_the_model_computes_at_every_length(family):
    model = FAMILIES[family]()
    source = open_source(model)
    program = source.importer.trace(MAX_LENGTH)
    for length in (2, 7, MAX_LENGTH):
        ids = torch.randint(3, VOCABULARY, (1, length))
        with torch.no_grad():
            torch.testing.assert_close(program.module()(ids), model(ids).logits)


@pytest.mark.parametrize("family", ["llama", "gpt_neo"])
def test_every_lifted_input_has_its_weight(family):
    program = open_source(FAMILIES[family]()).importer.trace(MAX_LENGTH)
    specs = program.graph_signature.input_specs
    lifted = {spec.target for spec in specs if spec.kind != InputKind.USER_INPUT}
    assert lifted <= set(program_weights(program))


def test_weights_share_memory_with_the_model_and_tied_ones_with_each_other():
    model = build("llama", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True)
    source = open_source(model)
    traced = program_weights(source.importer.trace(MAX_LENGTH))
    for weights in (source.importer.weights, traced):
        name = "model.model.layers.0.mlp.up_proj.weight"
        assert weights[name].data_ptr() == model.model.layers[0].mlp.up_proj.weight.data_ptr()
        assert weights["model.model.embed_tokens.weight"].data_ptr() == model.lm_head.weight.data_ptr()


def test_a_model_object_stays_as_it_was():
    model = FAMILIES["llama"]().train()
    model.set_attn_implementation("eager")
    settings, weights = model.config.to_dict(), {name: value.clone() for name, value in model.state_dict().items()}
    source = open_source(model, dtype="bfloat16")
    source.importer.trace(MAX_LENGTH)
    assert source.importer.weights["model.lm_head.weight"].dtype == torch.bfloat16
    assert source.importer.weights["model.model.rotary_emb.inv_freq"].dtype == torch.float32
    assert model.training
    assert model.config.to_dict() == settings
    assert model.config._attn_implementation == "eager"
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_directory_loads_in_the_dtype_asked_for(directory, llama):
    source = open_source(directory)
    assert source.importer.weights["model.lm_head.weight"].dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(source.importer.trace(MAX_LENGTH).module()(PROMPT), llama(PROMPT).logits)
    half = open_source(str(directory), dtype="bfloat16")
    assert half.importer.weights["model.lm_head.weight"].dtype == torch.bfloat16
    assert source.name == directory.name
    assert source.tokenizer is None
    assert source.limit is not None
    assert source.limit.positions == 512


def test_end_tokens_come_from_the_generation_config_first():
    model = FAMILIES["llama"]()
    model.config.eos_token_id = 2
    model.generation_config.eos_token_id = [5, 7]
    assert open_source(model).eos_token_ids == (5, 7)
    model.generation_config.eos_token_id = None
    assert open_source(model).eos_token_ids == (2,)


@pytest.mark.parametrize("wrapped", [False, True])
def test_any_module_traces(wrapped):
    model = Bigram(wrapped)
    source = open_source(model)
    assert source.name == "Bigram"
    assert source.importer.trace(MAX_LENGTH).module()(PROMPT).shape == (1, 20, VOCABULARY)
    assert source.importer.trace(MAX_LENGTH) is source.importer.trace(MAX_LENGTH)


def exported(shape=(1, 11), dynamic=True, module=None):
    ids = torch.zeros(shape, dtype=torch.long)
    shapes = ({1: Dim.DYNAMIC},) if dynamic else None
    return torch.export.export(module or Bigram(), (ids,), dynamic_shapes=shapes, strict=False)


def test_an_exported_program_is_taken_as_it_is():
    program = exported()
    source = open_source(program)
    assert source.importer.trace(MAX_LENGTH) is program
    assert set(source.importer.weights) == {"embedding.weight", "head.weight", "head.bias"}
    expect(InvalidOptionError, program, "float32", "bfloat16", dtype="bfloat16")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (lambda: exported(dynamic=False), ["fixes the sequence length at 11"]),
        (lambda: exported(shape=(2, 11)), ["[1, T]"]),
        (lambda: exported(module=nn.Sequential(Bigram(), nn.Flatten(0, 1))), ["logits [1, T, V]"]),
    ],
)
def test_a_program_of_another_form_is_refused(program, words):
    with pytest.raises(TraceError) as caught:
        open_source(program()).importer.trace(MAX_LENGTH)
    assert all(word in str(caught.value) for word in words)


class FixedLength(Bigram):
    def forward(self, input_ids):
        return super().forward(input_ids.view(1, int(input_ids.shape[1]))) + torch.zeros(1, 11, VOCABULARY)


class Branching(Bigram):
    def forward(self, input_ids):
        return super().forward(input_ids) * (2 if input_ids.shape[1] > 16 else 1)


class ValueDependent(Bigram):
    def forward(self, input_ids):
        return super().forward(input_ids) * (2 if input_ids.sum() > 16 else 1)


class NoLogits(Bigram):
    def forward(self, input_ids):
        return {"scores": super().forward(input_ids)}


class Crashing(Bigram):
    def forward(self, input_ids):
        raise ValueError("nothing works here")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (FixedLength, ["FixedLength", "any T"]),
        (Branching, ["Branching", "branch on the length"]),
        (ValueDependent, ["ValueDependent"]),
        (NoLogits, ["NoLogits", "dict", ".logits"]),
        (Crashing, ["nothing works here"]),
    ],
)
def test_a_model_that_does_not_trace_is_named_with_the_reason(model, words, capfd):
    with pytest.raises(TraceError) as caught:
        open_source(model()).importer.trace(MAX_LENGTH)
    assert capfd.readouterr() == ("", "")
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert all(word in message for word in words), message


def test_an_encoder_opens_and_traces():
    assert open_source(encoder()).importer.trace(MAX_LENGTH)


def test_bad_sources_are_named(tmp_path, directory):
    expect(SourceNotFoundError, tmp_path / "nothing", "nothing", "does not exist")
    expect(SourceNotFoundError, "HuggingFaceTB/SmolLM2-135M", "on this machine")
    expect(NotAModelError, tmp_path, str(tmp_path), "config.json")
    expect(NotAModelError, directory / "config.json", "not a GGUF file")
    expect(NotAModelError, 3, "int")
    expect(InvalidOptionError, directory, "float7", dtype="float7")


def test_a_directory_without_weights(damaged):
    (damaged / "model.safetensors").unlink()
    expect(NotAModelError, damaged, "no weights")


def test_a_directory_with_a_gguf_beside_names_the_file(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    expect(NotAModelError, tmp_path, "model.gguf")


def test_damaged_weights(damaged):
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    expect(CorruptFileError, damaged, str(damaged))
    weights.write_bytes(b"")
    expect(CorruptFileError, damaged, "empty")


def test_a_damaged_config(damaged):
    (damaged / "config.json").write_text("{")
    expect(CorruptFileError, damaged, "config.json")
    (damaged / "config.json").write_text('{"model_type": "no_such_type"}')
    expect(NotAModelError, damaged, str(damaged))


def test_missing_weights_are_not_made_up(damaged):
    config = damaged / "config.json"
    config.write_text(re.sub(r'"num_hidden_layers": \d+', f'"num_hidden_layers": {LAYERS + 1}', config.read_text()))
    expect(NotAModelError, damaged, "model.layers.2", "lacks weights")


def test_weights_of_another_size_are_named(damaged):
    config = damaged / "config.json"
    config.write_text(re.sub(r'"intermediate_size": \d+', '"intermediate_size": 96', config.read_text()))
    expect(NotAModelError, damaged, "another size", "mlp")


def test_damaged_pickled_weights(damaged):
    (damaged / "model.safetensors").unlink()
    (damaged / "pytorch_model.bin").write_bytes(b"abc")
    expect(CorruptFileError, damaged, "cannot be read")


def test_an_encoder_decoder_is_no_causal_language_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "model.safetensors").write_bytes(b"x")
    expect(NotAModelError, tmp_path, "causal language model")


def test_a_source_gives_ir_and_its_weights():
    progress = SilentProgress()
    module, weights = open_source(Bigram(), progress=progress).import_(MAX_LENGTH)
    assert list(ir.functions(module)) == ["forward"]
    assert set(weights) == set(ir.weights(module))
    assert {"trace", "import"} <= progress.seconds.keys()


def test_stages_are_timed(directory: Path, capsys):
    progress = open_progress()
    assert isinstance(progress, SilentProgress)
    open_source(directory, progress=progress)
    assert progress.seconds["load weights"] > 0
    assert capsys.readouterr().err == ""
