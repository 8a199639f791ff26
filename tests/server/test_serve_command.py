"""The command: what it refuses before anything is compiled, and a model that is served by it."""

import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import util

import httpx
import pytest
from openai import OpenAI

from forerun.cli import main
from forerun.serve_command import KEY


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one sentence of a refusal."""
    assert main(["serve", "demo", *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


@pytest.fixture(autouse=True)
def _without_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(KEY, raising=False)

    def compiled(*_: object) -> None:
        raise AssertionError("nothing is compiled")

    monkeypatch.setattr("forerun.commands.compiled", compiled)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--port", "70000"), "--port must be from 0 to 65535, not 70000"),
        (("--queue", "0"), "--queue must be from 1"),
        (("--max-body", "0"), "--max-body must be from 1"),
        (("--choices", "-1"), "--choices must be from 1"),
        (("--max-prompt", "0"), "--max-prompt must be 1 or more"),
        (("--timeout", "0"), "--timeout must be"),
        (("--timeout", "nan"), "--timeout must be a number"),
        (("--drain", "-1"), "--drain must be 0"),
        (("--host", "no.such.host.invalid"), "has no address"),
        (("--strategy", "tree_spek"), "did you mean 'tree_spec'"),
        (("--api-key", " "), "printable ASCII"),
    ],
)
def test_options_out_of_range(capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str):
    assert said in refused(capsys, *options)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_need_a_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, host: str):
    if host == "::" and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    said = refused(capsys, "--host", host, "--port", "0")
    assert KEY in said
    assert "--api-key" in said
    monkeypatch.setenv(KEY, "sekret")
    with pytest.raises(AssertionError, match="nothing is compiled"):
        main(["serve", "demo", "--host", host, "--port", "0"])


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} cannot be used" in refused(capsys, "--port", str(port))


def test_missing_packages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    found = util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "uvicorn" else found(name, *more)
    )
    said = refused(capsys)
    assert 'forerun serve needs uvicorn: run pip install "forerun[serve]".' in said


@pytest.mark.real
@pytest.mark.slow
def test_a_real_model():
    command = [sys.executable, "-m", "forerun.cli", "serve", "demo", "--port", "0", "--json", "--name", "small"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            told = json.loads(process.stdout.readline())
            assert told["model"] == "small"
            client = OpenAI(base_url=f"{told['url']}/v1", api_key="none", max_retries=0)

            def text(seed: int) -> str:
                turns = [{"role": "user", "content": "Name three islands."}]
                answer = client.chat.completions.create(model="small", messages=turns, seed=seed, max_tokens=40)
                return answer.choices[0].message.content

            alone = text(7)
            with ThreadPoolExecutor(9) as pool:
                others = [pool.submit(text, seed) for seed in range(8)]
                assert pool.submit(text, 7).result() == alone == others[7].result()
                assert len({each.result() for each in others}) > 4
            assert httpx.get(f"{told['url']}/metrics").status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
