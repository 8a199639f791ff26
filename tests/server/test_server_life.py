"""Requests that end early, wait, or are too many; and the end of the server."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from forerun.server.limits import Limits
from tests.server.served import NAME, Served, compiled, oracle, running

ROOT = Path(__file__).parents[2]
LONG = {"prompt": "abc", "max_tokens": 400, "temperature": 0}


@pytest.fixture(scope="module")
def slow() -> Iterator[Served]:
    """Each step takes 20 milliseconds."""
    with running(compiled(oracle(delay=0.02)), Limits(queue=4)) as found:
        yield found


def metrics(url: str) -> dict[tuple, float]:
    text = httpx.get(f"{url}/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def events(lines: Iterator[str]) -> Iterator[dict]:
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_session(slow: Served, stream: bool):
    with httpx.Client() as client:
        if stream:
            with client.stream(
                "POST", f"{slow.url}/v1/completions", json={"model": NAME, **LONG, "stream": True}
            ) as answer:
                next(events(answer.iter_lines()))
                assert slow.model.serving.sessions
                steps = len(slow.model.executable.steps)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{slow.url}/v1/completions", json={"model": NAME, **LONG}, timeout=0.3)
            steps = len(slow.model.executable.steps)
    began = time.monotonic()
    assert slow.idle(2)
    assert time.monotonic() - began < 0.5
    assert len(slow.model.executable.steps) - steps <= 4, "the step that runs is the last, but for the network's delay"


def test_too_many_texts(slow: Served):
    with ThreadPoolExecutor(4) as pool:
        running_ = [pool.submit(slow.post, **LONG | {"max_tokens": 120}) for _ in range(4)]
        until = time.monotonic() + 5
        while slow.service.admission.texts < 4 and time.monotonic() < until:
            time.sleep(0.005)
        refused = slow.post(**LONG)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.get(f"{slow.url}/health").status_code == 200
        assert {each.result().status_code for each in running_} == {200}
    assert slow.idle()
    assert slow.post(prompt="a", n=5, max_tokens=2).status_code == 429


def test_time_is_limited():
    with running(compiled(oracle(delay=0.02)), Limits(seconds=0.3)) as hasty:
        answer = hasty.post(**LONG)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        with httpx.stream(
            "POST", f"{hasty.url}/v1/completions", json={"model": NAME, **LONG, "stream": True}
        ) as answer:
            told = list(events(answer.iter_lines()))
        assert answer.status_code == 200
        assert told[-1]["error"]["code"] == "timeout"
        assert len(told) > 3
        assert hasty.idle()

        def parts() -> Iterator[bytes]:
            yield b"{"
            time.sleep(0.6)
            yield b"}"

        late = httpx.post(f"{hasty.url}/v1/completions", content=parts(), headers={"Content-Type": "application/json"})
        assert late.status_code == 408


def test_metrics(slow: Served):
    slow.model.executable.write([5, 6, 7] * 3, [5, 6, 7] * 20)
    before = metrics(slow.url)
    slow.post(prompt=[5, 6, 7] * 3, max_tokens=60, temperature=0)
    slow.post(prompt=7)
    after = metrics(slow.url)

    def grown(*name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("forerun_requests_total", "/v1/completions", "200") == 1
    assert grown("forerun_requests_total", "/v1/completions", "400") == 1
    assert grown("forerun_prompt_tokens_total") == 9
    assert grown("forerun_generated_tokens_total") == 60
    assert grown("forerun_accepted_length_sum") == 60
    assert 1 <= grown("forerun_accepted_length_count") <= grown("forerun_steps_total") < 30, "drafts are accepted"
    assert grown("forerun_first_token_seconds_count") == 1
    assert (
        after["forerun_texts_running",] == after["forerun_texts_waiting",] == after["forerun_cache_blocks_used",] == 0
    )
    assert after["forerun_cache_blocks",] == slow.model.engine.cache.blocks
    assert sum(name[0] == "forerun_requests_total" for name in after) < 20


def test_metrics_while_it_runs(slow: Served):
    thread = threading.Thread(target=slow.post, kwargs=LONG | {"max_tokens": 60})
    thread.start()
    time.sleep(0.3)
    seen = metrics(slow.url)
    assert seen["forerun_texts_running",] == 1
    assert seen["forerun_cache_blocks_used",] > 0
    thread.join()
    assert slow.idle()


def test_an_error_of_the_model_is_told_and_ends_one_text_only():
    executable = oracle(delay=0.01)
    model = compiled(executable)
    broken = [1, 2, 3]
    executable.write(broken, [5, 5, 5, 5, 5, 5])
    digests = list(executable.known)
    executable.known[digests[4]] = np.full(executable.vocabulary, np.nan, np.float32)
    with running(model) as ill, ThreadPoolExecutor(2) as pool:
        other = pool.submit(ill.post, prompt="abc", max_tokens=40, temperature=0)
        answer = ill.post(prompt=broken, max_tokens=40, temperature=0)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "not_a_number"
        assert other.result().status_code == 200
        with httpx.stream(
            "POST",
            f"{ill.url}/v1/completions",
            json={"model": NAME, "prompt": broken, "temperature": 0, "max_tokens": 9, "stream": True},
        ) as stream:
            told = list(events(stream.iter_lines()))
        assert told[-1]["error"]["code"] == "not_a_number"
        assert ill.idle()


def started(delay: float, drain: float) -> tuple[subprocess.Popen, str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.served", str(delay), str(drain)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["url"]


@pytest.mark.parametrize(("drain", "code"), [(30.0, 0), (0.4, 1)])
def test_sigterm_drains(drain: float, code: int):
    """What runs is finished, if --drain allows it; new requests get 503."""
    process, url = started(0.02, drain)
    try:
        with httpx.stream(
            "POST", f"{url}/v1/completions", json={"model": NAME, **LONG, "max_tokens": 120, "stream": True}, timeout=60
        ) as answer:
            lines = answer.iter_lines()
            told = [next(events(lines))]
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            refused = httpx.post(f"{url}/v1/completions", json={"model": NAME, "prompt": "a"})
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
            assert httpx.get(f"{url}/health").status_code == 503
            told += list(events(lines))
        if code == 0:
            assert told[-1]["choices"][0]["finish_reason"] in ("length", "stop")
        else:
            assert told[-1]["error"]["code"] == "shutting_down"
        assert process.wait(10) == code
    finally:
        process.kill()
        process.wait()


def test_a_second_signal_ends_at_once():
    process, url = started(0.02, 60)
    try:
        with httpx.stream(
            "POST", f"{url}/v1/completions", json={"model": NAME, **LONG, "stream": True}, timeout=60
        ) as answer:
            lines = answer.iter_lines()
            next(events(lines))
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            told = list(events(lines))
        assert told[-1]["error"]["code"] == "shutting_down"
        assert process.wait(10) == 1
    finally:
        process.kill()
        process.wait()
