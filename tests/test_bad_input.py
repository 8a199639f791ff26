"""Bad input gives one sentence that names the thing and the remedy, a class of `forerun.errors`, and exit code 2."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import forerun
from forerun import build, commands, errors
from forerun.cli import main
from forerun.option_names import with_options
from tests.frontends import gguf_files
from tests.models import FAMILIES, encoder

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def model() -> forerun.CompiledModel:
    return forerun.compile(FAMILIES["llama"](), strategy="autoregressive", target="reference", max_length=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    FAMILIES["llama"]().save_pretrained(path)
    return path


class Sorts(nn.Module):
    """Uses an operation without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(self.embedding(input_ids)).real


class Averages(nn.Module):
    """Every position sees the mean over the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 16)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(input_ids)
        return embedded + embedded.mean(dim=1, keepdim=True)


COMPILING: dict[str, tuple[type[Exception], Callable[[], Any], str]] = {
    "a missing path": (errors.SourceNotFoundError, lambda: forerun.compile("/no/such/model"), "/no/such/model"),
    "no model at all": (errors.NotAModelError, lambda: forerun.compile(42), "int"),
    "an encoder": (errors.LookAheadError, lambda: forerun.compile(encoder()), "attention"),
    "a mean over the sequence": (errors.LookAheadError, lambda: forerun.compile(Averages()), "reduce"),
    "an operation without a rule": (errors.UnsupportedOperationError, lambda: forerun.compile(Sorts()), "fft"),
    "an unknown strategy": (
        errors.UnknownStrategyError,
        lambda: forerun.compile("x", strategy="tree_spek"),
        "tree_spec",
    ),
    "a list of strategies": (errors.UnknownStrategyError, lambda: forerun.compile("x", strategy=["a"]), "'a'"),  # type: ignore[arg-type]
    "float16 on the CPU": (
        errors.InvalidOptionError,
        lambda: forerun.compile("x", target="cpu", dtype="float16"),
        "cpu target has no kernels for dtype 'float16'",
    ),
    "quantized blocks on a GPU": (
        errors.InvalidOptionError,
        lambda: forerun.compile("x", target="cuda", dtype="native"),
        "cuda target has no kernels for dtype 'native'",
    ),
    "an unknown target": (errors.UnknownTargetError, lambda: forerun.compile("x", target="tpu"), "tpu"),
    "an unknown dtype": (errors.InvalidOptionError, lambda: forerun.compile(Averages(), dtype="int3"), "int3"),
    "a folder for dumps that is a file": (
        errors.InvalidOptionError,
        lambda: forerun.compile(Averages(), dump_dir=__file__),
        "dump_dir",
    ),
    "a draft that is not there": (
        errors.SourceNotFoundError,
        lambda: forerun.compile(Averages(), strategy="draft_model:/no/such/draft"),
        "/no/such/draft",
    ),
    "a draft's draft that is not there": (
        errors.SourceNotFoundError,
        lambda: forerun.compile(
            Averages(),
            strategy=forerun.TreeSpec(drafters=(forerun.DraftModel(Averages(), drafter=forerun.DraftModel("/no/it")),)),
        ),
        "/no/it",
    ),
    "a path with a NUL": (errors.InvalidOptionError, lambda: forerun.compile("a\0b"), "NUL"),
    "a home that is not there": (
        errors.InvalidOptionError,
        lambda: forerun.compile("~no-such-user/x"),
        "~no-such-user",
    ),
    "a length in letters": (errors.InvalidOptionError, lambda: forerun.compile("x", max_length="9"), "max_length"),  # type: ignore[arg-type]
    "a target that is no name": (errors.UnknownTargetError, lambda: forerun.compile("x", target=["cpu"]), "cpu"),  # type: ignore[arg-type]
    "no room": (errors.InvalidOptionError, lambda: forerun.compile(Averages(), max_length=1), "max_length"),
}


@pytest.mark.parametrize("case", COMPILING)
def test_compile_says_what_is_wrong(case: str) -> None:
    error, call, named = COMPILING[case]
    with pytest.raises(error) as caught:
        call()
    first, *_ = str(caught.value).splitlines()
    assert named in first
    assert isinstance(caught.value, errors.ForerunError)


GENERATING: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "an empty prompt": (errors.PromptError, {"input_ids": []}, "empty"),
    "a token outside": (errors.PromptError, {"input_ids": [3, 999]}, "999"),
    "a negative token": (errors.PromptError, {"input_ids": [-1]}, "-1"),
    "two prompts, one of them empty": (errors.PromptError, {"input_ids": [[1], []]}, "prompt 1"),
    "too long": (errors.TooLongError, {"input_ids": PROMPT, "max_new_tokens": 28}, "max_length 32"),
    "no new tokens": (errors.InvalidOptionError, {"input_ids": PROMPT, "max_new_tokens": 0}, "max_new_tokens"),
    "new tokens as text": (errors.InvalidOptionError, {"input_ids": PROMPT, "max_new_tokens": "5"}, "max_new_tokens"),
    "new tokens as None": (errors.InvalidOptionError, {"input_ids": PROMPT, "max_new_tokens": None}, "max_new_tokens"),
    "new tokens as float": (errors.InvalidOptionError, {"input_ids": PROMPT, "max_new_tokens": 2.0}, "max_new_tokens"),
    "temperature as text": (errors.InvalidOptionError, {"input_ids": PROMPT, "temperature": "1"}, "temperature"),
    "no seed": (errors.InvalidOptionError, {"input_ids": PROMPT, "seed": None}, "seed"),
    "half a seed": (errors.InvalidOptionError, {"input_ids": PROMPT, "seed": 1.5}, "seed"),
    "top_k as text": (errors.InvalidOptionError, {"input_ids": PROMPT, "do_sample": True, "top_k": "3"}, "top_k"),
    "a tiny temperature": (
        errors.InvalidOptionError,
        {"input_ids": PROMPT, "do_sample": True, "temperature": 1e-320},
        "do_sample=False",
    ),
    "a negative end": (errors.InvalidOptionError, {"input_ids": PROMPT, "eos_token_id": -1}, "eos_token_id"),
    "an end outside": (errors.InvalidOptionError, {"input_ids": PROMPT, "eos_token_id": [1, 10**6]}, "eos_token_id"),
    "an end as text": (errors.InvalidOptionError, {"input_ids": PROMPT, "eos_token_id": "</s>"}, "eos_token_id"),
    "ends of ends": (errors.InvalidOptionError, {"input_ids": PROMPT, "eos_token_id": [[1], [1, 2]]}, "eos_token_id"),
    "text": (errors.PromptError, {"input_ids": "hello"}, "encode the text with the tokenizer first"),
    "texts": (errors.PromptError, {"input_ids": ["hello"]}, "encode the text with the tokenizer first"),
    "nothing": (errors.PromptError, {"input_ids": None}, "there is no prompt"),
    "a dictionary": (
        errors.PromptError,
        {"input_ids": {"ids": PROMPT}},
        "encode the text with the tokenizer first",
    ),
    "floats": (errors.PromptError, {"input_ids": torch.ones(3, dtype=torch.bfloat16)}, "float64"),
    "temperature 0": (
        errors.InvalidOptionError,
        {"input_ids": PROMPT, "do_sample": True, "temperature": 0.0},
        "do_sample=False",
    ),
    "top_p below 0": (errors.InvalidOptionError, {"input_ids": PROMPT, "do_sample": True, "top_p": -0.1}, "top_p"),
    "top_k below 0": (errors.InvalidOptionError, {"input_ids": PROMPT, "do_sample": True, "top_k": -1}, "top_k"),
    "contradiction": (errors.InvalidOptionError, {"input_ids": PROMPT, "temperature": 0.7}, "do_sample"),
}


@pytest.mark.parametrize("case", GENERATING)
def test_generate_says_what_is_wrong_and_loses_nothing(case: str, model: forerun.CompiledModel) -> None:
    error, options, named = GENERATING[case]
    options = {"max_new_tokens": 4, **options}
    with pytest.raises(error) as caught:
        model.generate(**options)
    assert named in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(model.generate(PROMPT, max_new_tokens=3, eos_token_id=[]).token_ids) == 3


def test_integers_of_numpy_are_integers(model: forerun.CompiledModel) -> None:
    plain = model.generate(PROMPT, max_new_tokens=3, do_sample=True, top_k=5, seed=7, eos_token_id=[])
    ends = np.array([], np.int64)
    numpy = model.generate(
        np.array(PROMPT), np.int8(3), True, np.float32(1.0), np.int64(5), seed=np.uint64(7), eos_token_id=ends
    )
    assert numpy.token_ids == plain.token_ids


COMMANDS: dict[str, list[str]] = {
    "a missing model": ["generate", "/no/such/model", "--prompt", "x"],
    "a missing prompt file": ["generate", "MODEL", "--prompt-file", "/no/such/prompt"],
    "a model without a tokenizer": ["generate", "MODEL", "--prompt", "x", "--target", "reference"],
    "letters for token ids": ["generate", "MODEL", "--token-ids", "1,b", "--target", "reference"],
    "an unknown strategy": ["generate", "MODEL", "--token-ids", "1", "--strategy", "magic"],
    "an unknown target": ["dump", "MODEL", "--target", "abacus"],
    "a token outside": [
        "generate",
        "MODEL",
        "--token-ids",
        "1,100000",
        "--target",
        "reference",
        "--strategy",
        "autoregressive",
    ],
    "no cases": ["verify", "MODEL", "--cases", "0", "--target", "reference"],
    "a target that promises no bits": ["verify", "MODEL", "--target", "reference"],
}


@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_line_exits_with_2(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder) if each == "MODEL" else each for each in COMMANDS[case]]
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("forerun: ")
    assert "Traceback" not in shown


OPTIONS: dict[str, tuple[list[str], str]] = {
    "a setting of sampling": (["--temperature", "0.8"], "--temperature needs --do-sample: "),
    "no new tokens": (["--max-new-tokens", "0"], "--max-new-tokens must be 1 or more"),
    "no room": (["--max-length", "9"], "exceed --max-length 9: shorten the prompt or --max-new-tokens, or"),
    "a temperature": (["--do-sample", "--temperature", "0"], "use no --do-sample for"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_the_command_line_names_options(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, said = OPTIONS[case]
    assert main(["generate", str(folder), "--token-ids", "1,2", *options]) == 2
    assert said in capsys.readouterr().err


def test_what_is_no_keyword_keeps_its_words() -> None:
    names = ["max_length", "trust_remote_code", "temperature"]
    told = "'/a/max_length' and max_length.py: the temperature of 'max_length', given"
    assert with_options(told, names) == told
    assert with_options("pass trust_remote_code=True (--trust-remote-code).", names) == "pass --trust-remote-code."


def test_what_a_model_lacks_is_said_before_it_is_compiled(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = gguf_files.write(tmp_path / "model.gguf", "llama", {}, {"x": np.zeros(4, np.float32)})
    monkeypatch.setattr(commands, "compiled", None)
    for model in (folder, file):
        assert main(["generate", str(model), "--prompt", "x"]) == 2
        assert "The model has no tokenizer; give the prompt as --token-ids." in capsys.readouterr().err


@pytest.mark.parametrize(
    "draft", ["x", "early-exit{layers=-1}", "skip-layers{branches=1,1}", "skip-layers{branches=-1}"]
)
def test_a_draft_that_cannot_be_is_refused_before_anything_is_written(
    draft: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "lower", None)
    assert main(["dump", str(folder), "--draft", draft, "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_a_prompt_file_that_is_no_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompt"
    file.write_bytes(b"caf\xe9")
    assert main(["generate", str(folder), "--prompt-file", str(file)]) == 2
    assert f"The prompt file {file} is not UTF-8 text (byte 3); convert it to UTF-8." in capsys.readouterr().err


def test_errors_are_json_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "/no/such/model", "--prompt", "x", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "SourceNotFoundError"


def test_generate_from_token_ids(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "generate",
        str(folder),
        "--token-ids",
        "1,2,3",
        "--max-new-tokens",
        "4",
        "--target",
        "reference",
        "--json",
    ]
    assert main(command) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["token_ids"]) == 4
    assert shown["finish_reason"] == "length"
