"""What a model directory may contain: its code, its index, its generation config, its tokenizer, its positions."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

import forerun
from forerun.build import LengthWarning
from forerun.errors import (
    CorruptFileError,
    ForerunError,
    InvalidOptionError,
    NotAModelError,
    SourceNotFoundError,
    UnsupportedOperationError,
)
from forerun.frontends.generation_config import APPLIED, ENDS, NEUTRAL, WITHOUT_EFFECT
from forerun.frontends.source import open_source
from forerun.runtime.known_keywords import known_keywords
from tests.models import FAMILIES, GROUPED, build

CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own_model_of_a_folder"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    FAMILIES["llama"]().save_pretrained(path)
    return path


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def one_sentence(error: ForerunError, *words: str) -> None:
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error)


@pytest.fixture
def with_code(folder: Path, tmp_path: Path) -> Path:
    (folder / "own.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change(folder / "config.json", model_type="own_model_of_a_folder", auto_map=auto)
    return folder


def test_code_of_a_folder_does_not_run_whatever_stdin_says(with_code: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-m", "forerun.cli", "generate", str(with_code), "--token-ids", "1,2"]
    ended = subprocess.run(command, input="y\n" * 100, capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == 2, ended.stderr
    assert "own.py" in ended.stderr
    assert "--trust-remote-code" in ended.stderr
    assert not (tmp_path / "mark").exists()


def test_trusted_code_runs(with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(NotAModelError) as refused:
        open_source(with_code)
    one_sentence(refused.value, "own.py", "trust_remote_code=True")
    assert open_source(with_code, trust_remote_code=True).name == "model"
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/../../b.safetensors", "..\\other", "C:\\x"])
def test_an_index_that_leaves_its_directory(folder: Path, name: str) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(CorruptFileError) as refused:
        open_source(folder)
    one_sentence(refused.value, index.name, "outside")


def test_an_index_that_names_a_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(CorruptFileError, match=r"lacks model-2\.safetensors"):
        open_source(folder)


def test_every_field_of_a_generation_config_is_classified() -> None:
    fields = {each for each in vars(GenerationConfig()) if not each.startswith("_")} - {"transformers_version", ENDS}
    assert fields <= APPLIED | WITHOUT_EFFECT | NEUTRAL.keys()
    assert not APPLIED & WITHOUT_EFFECT
    assert not (APPLIED | WITHOUT_EFFECT) & NEUTRAL.keys()
    assert set(known_keywords()) >= APPLIED


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder_repetition_penalty", 1.1),
        ("remove_invalid_values", True),
        ("penalty_alpha", 0.6),
        ("top_h", 0.4),
        ("num_beams", 4),
        ("guidance_scale", 1.5),
    ],
)
def test_what_changes_a_text_and_is_not_applied_is_refused_or_left_out(folder: Path, field: str, value: object) -> None:
    change(folder / "generation_config.json", **{field: value})
    with pytest.raises(InvalidOptionError) as refused:
        open_source(folder)
    one_sentence(refused.value, field, "generation_config=None")
    assert open_source(folder, generation_config=None).defaults == {}
    assert open_source(folder, generation_config=GenerationConfig(top_k=3)).defaults == {"top_k": 3}
    with pytest.raises(InvalidOptionError, match=field):
        open_source(folder, generation_config=GenerationConfig(**{field: value}))


def test_a_generation_config_gives_defaults(folder: Path) -> None:
    assert open_source(folder).defaults == {}
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    change(folder / "generation_config.json", **sampling, eos_token_id=[5, 6], max_length=4096, use_cache=False)
    source = open_source(folder)
    assert source.eos_token_ids == (5, 6)
    assert source.defaults == sampling
    assert open_source(folder, generation_config=None).defaults == {}


def test_a_generation_config_of_the_callers(folder: Path) -> None:
    change(folder / "generation_config.json", repetition_penalty=1.1)
    source = open_source(folder, generation_config=GenerationConfig(eos_token_id=9, sequence_bias={(1, 2): -1.5}))
    assert source.eos_token_ids == (9,)
    assert source.defaults == {"sequence_bias": [[[1, 2], -1.5]]}
    program = torch.export.export(nn.Embedding(8, 8), (torch.zeros(1, 4, dtype=torch.int64),))
    assert open_source(program, generation_config=GenerationConfig(top_k=3)).defaults == {"top_k": 3}


def test_defaults_are_transformers_wherever_a_model_goes(folder: Path, tmp_path: Path) -> None:
    """Compiled, kept on disk, under another strategy, and in a bundle."""
    defaults = {"repetition_penalty": 1.6, "suppress_tokens": [3, 4], "min_length": 12, "temperature": 0.5}
    change(folder / "generation_config.json", **defaults)
    reference = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[5, 9, 200, 13, 5, 9]])
    expected = reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12)[0, 6:].tolist()
    free = reference.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, repetition_penalty=1.0)
    assert free[0, 6:].tolist() != expected
    compiled, kept = (forerun.compile(folder, max_length=64) for _ in range(2))
    bundle = forerun.load(compiled.export(tmp_path / "bundle", "tvm"))
    for model in (compiled, kept, forerun.with_strategy(kept, "autoregressive"), bundle):
        assert model.defaults == defaults
        assert model.generate(ids, 12).token_ids == expected
    assert compiled.generate(ids, 12, repetition_penalty=1.0).token_ids == free[0, 6:].tolist()
    sampled = compiled.generate(ids, 12, do_sample=True).token_ids
    assert sampled == bundle.generate(ids, 12, do_sample=True, temperature=0.5).token_ids


@pytest.mark.parametrize(
    ("name", "content"), [("tokenizer.json", "{"), ("tokenizer_config.json", ""), ("vocab.json", "[")]
)
def test_a_damaged_tokenizer_is_not_no_tokenizer(folder: Path, name: str, content: str) -> None:
    assert open_source(folder).tokenizer is None
    (folder / name).write_text(content)
    with pytest.raises(CorruptFileError) as refused:
        open_source(folder)
    one_sentence(refused.value, name)


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotAModelError, match="pipe"):
        open_source(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for path in ("~nobody-of-this-name/model", "a\0b", "x" * 5000, tmp_path / "dangling"):
        with pytest.raises(SourceNotFoundError) as refused:
            open_source(path)
        one_sentence(refused.value)


class Table(nn.Module):
    """32 learned positions, indexed in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.embedding, self.head, self.positions = nn.Embedding(64, 16), nn.Linear(16, 64), nn.Embedding(32, 16)
        self.way = way

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        length, table = input_ids.shape[1], self.positions.weight
        index = torch.arange(length)
        match self.way:
            case "embedding":
                found = self.positions(index)
            case "offset":
                found = self.positions(index + 2)
            case "slice":
                found = table[:length]
            case "index_select":
                found = torch.index_select(table, 0, index)
            case "cumsum":
                found = self.positions(torch.cumsum(torch.ones_like(input_ids), 1) - 1)
            case _:
                found = torch.gather(table, 0, index[:, None].expand(-1, 16))
        return self.head(self.embedding(input_ids) + found)


@pytest.mark.parametrize("way", ["embedding", "offset", "slice", "index_select", "cumsum", "gather"])
def test_a_table_of_positions_that_is_too_short_is_named(way: str) -> None:
    with pytest.raises(ForerunError) as refused:
        forerun.compile(Table(way), "autoregressive", target="reference", max_length=64)
    most = 30 if way == "offset" else 32
    one_sentence(refused.value, "positions.weight", "32 entries", f"max_length={most} or less")
    forerun.compile(Table(way), "autoregressive", target="reference", max_length=most)


class Counter(nn.Module):
    """A module whose forward pass keeps state."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(64, 16), nn.Linear(16, 64)
        self.register_buffer("count", torch.ones(()))
        self.way, self.calls = way, 0

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.way == "in place":
            self.count += 1
        elif self.way == "assigned":
            self.count = self.count + 1
        factor = self.calls if self.way == "number" else self.count
        return self.head(self.embedding(input_ids)) * factor


@pytest.mark.parametrize("way", ["in place", "assigned", "number"])
def test_a_forward_pass_that_keeps_something_is_refused(way: str) -> None:
    model = Counter(way)
    with pytest.raises(ForerunError) as refused:
        forerun.compile(model, "autoregressive", target="reference", max_length=32)
    one_sentence(refused.value, "Counter", "calls" if way == "number" else "count")
    assert float(model.count) == 1, "the caller's model was changed"


def test_a_model_that_samples_is_named_by_its_operation_and_takes_no_random_numbers() -> None:
    class Dropping(Counter):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(super().forward(input_ids), 0.5, True)

    model = Dropping("none")
    before = torch.get_rng_state()
    with pytest.raises(UnsupportedOperationError) as refused:
        forerun.compile(model, "autoregressive", target="reference", max_length=32)
    assert "dropout" in str(refused.value)
    assert torch.equal(before, torch.get_rng_state())


def test_a_call_counter_that_changes_no_text_is_no_state() -> None:
    forerun.compile(Counter("none"), "autoregressive", target="reference", max_length=32)


LONGROPE = {"short_factor": [1.5] * 8, "long_factor": [3.0] * 8}


@pytest.mark.parametrize(
    ("scaling", "limit"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, 64),
        ({"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 32, **LONGROPE}, 32),
    ],
)
def test_scaling_by_length_is_held_where_it_is_constant(scaling: dict[str, object], limit: int) -> None:
    settings = GROUPED | {"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 1e4, **scaling}}
    model = build("llama", **settings)
    with pytest.warns(LengthWarning, match=f"capped at {limit}"):
        compiled = forerun.compile(model, "autoregressive", target="reference", max_length=200)
    assert compiled.max_length == limit
    prompt = torch.randint(3, 250, (1, limit - 8), generator=torch.Generator().manual_seed(1))
    expected = model.generate(prompt, max_new_tokens=8, do_sample=False)[0, limit - 8 :].tolist()
    assert compiled.generate(prompt, max_new_tokens=8).token_ids == expected


def test_a_length_that_nobody_asked_for_is_capped_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LengthWarning)
        assert forerun.compile(FAMILIES["llama"](), "autoregressive", target="reference").max_length == 512


def test_a_folder_is_copied_whole(folder: Path, tmp_path: Path) -> None:
    """Links inside a folder, as in hubs' caches, do not lead out of it."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in folder.iterdir():
        (linked / file.name).symlink_to(file)
    assert open_source(linked).name == "linked"
    shutil.rmtree(folder)
