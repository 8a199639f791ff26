"""`torchrun -m forerun.distributed`: the bits of `forerun generate`, and one sentence for what is wrong."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from forerun.distributed.__main__ import RANK, WORLD, main

PROMPT = "Name three colours of the sea."
GENERATE = ("generate", "demo", "--prompt", PROMPT, "--max-new-tokens", "24", "--max-length", "256", "--json")


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def generated(processes: int, *options: str) -> list[int]:
    torchrun = ("torch.distributed.run", "--nproc-per-node", str(processes), "-m", "forerun.distributed")
    return json.loads(run(*torchrun, *GENERATE, *options))["token_ids"]


@pytest.mark.real
def test_two_processes_generate_what_one_generates(tmp_path: Path) -> None:
    timeline = tmp_path / "timeline.svg"
    alone = json.loads(run("forerun.cli", *GENERATE))["token_ids"]
    assert generated(2, "--timeline", str(timeline)) == alone
    assert ElementTree.parse(timeline).getroot().tag.endswith("svg")


@pytest.mark.real
@pytest.mark.slow
def test_four_processes_generate_what_one_generates() -> None:
    alone = json.loads(run("forerun.cli", *GENERATE))["token_ids"]
    assert generated(4, "--attention", "2", "--ffn", "2") == alone


@pytest.mark.real
@pytest.mark.slow
def test_two_processes_are_certified() -> None:
    run("torch.distributed.run", "--nproc-per-node", "2", "-m", "forerun.distributed", "verify", "demo", "--cases", "8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "demo", "--prompt", "x"), "this is one process: start 2 with torchrun --nproc-per-node 2"),
        (("generate", "--ffn", "3", "demo", "--prompt", "x"), "start 4 with torchrun --nproc-per-node 4"),
        (("generate", "--attention", "0", "demo", "--prompt", "x"), "attention must be at least 1, not 0"),
        (("generate", "--groups", "-1", "demo", "--prompt", "x"), "--groups must be auto or a number from 1, not -1"),
        (("export", "demo", "--out", "x"), "invalid choice: 'export'"),
        (("generate", "demo"), "one of the arguments --prompt --prompt-file --token-ids is required"),
    ],
)
def test_wrong_options_are_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(RANK, raising=False)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rank", "world", "message"),
    [
        ("x", "2", "RANK and WORLD_SIZE are not what torchrun sets (x, 2): use torchrun"),
        ("0", "", "RANK and WORLD_SIZE are not what torchrun sets (0, ): use torchrun"),
        ("0", "2", "the processes do not find each other"),
    ],
)
def test_another_start_is_refused(
    rank: str, world: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RANK, rank)
    monkeypatch.setenv(WORLD, world)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert main(["generate", "demo", "--prompt", "x"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--attention", "3"), "3 attention ranks and 1 feed-forward ranks are 4, and torchrun has started 2"),
        (("--target", "reference"), "several processes run on the target cpu; leave out --target reference"),
        (("--groups", "2", "--timeline", "x.svg"), "leave out --groups"),
        (("--timeline", "nowhere/x.svg"), "in a folder that does not exist"),
        (("--max-new-tokens", "0"), "max_new_tokens"),
    ],
)
def test_wrong_options_of_a_started_process_are_refused(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = "0" if "--timeline" in options else "1"  # the first rank alone draws
    monkeypatch.setenv(RANK, rank)
    monkeypatch.setenv(WORLD, "2")
    assert main(["generate", "demo", "--prompt", "x", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("forerun.distributed: " if rank == "0" else "forerun.distributed, rank 1: ")
