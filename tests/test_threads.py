"""Several threads, and forked processes: each gets what it would get alone, or one sentence."""

import io
import logging
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

import forerun
from forerun.errors import ForkError
from forerun.forking import Turn, with_live_threads
from forerun.frontends.quiet import quiet_libraries
from forerun.progress import SilentProgress, TerminalProgress
from tests.models import FAMILIES

PROMPT = [5, 9, 200, 13]
LIMIT = 120
"""Seconds after which a child hangs."""


def logits(model: Any, **options: Any) -> np.ndarray[Any, Any]:
    compiled = forerun.compile(model, "autoregressive", max_length=64, progress=SilentProgress(), **options)
    return compiled.generate(PROMPT, 4, return_logits=True).logits


def process_state() -> list[Any]:
    streams = [sys.stdout, sys.stderr]
    return [*streams, logging.root.manager.disable, list(warnings.filters), warnings.showwarning, os.environ.copy()]


def test_four_threads_compile_while_another_prints_and_logs(tmp_path: Path, monkeypatch, caplog, capsys) -> None:
    monkeypatch.setenv("FORERUN_CACHE_GB", "0")
    FAMILIES["llama"]().save_pretrained(tmp_path / "model")
    models: list[Any] = [FAMILIES["qwen2"](), FAMILIES["gpt2"](), tmp_path / "model", tmp_path / "model"]
    alone = [logits(each) for each in models[:3]]
    before, stopped, differing = process_state(), threading.Event(), list[Any]()
    lines = 0
    capsys.readouterr()
    caplog.clear()

    def talk() -> None:
        nonlocal lines
        while not stopped.is_set():
            print(f"line {lines}")
            logging.getLogger("torch").warning("line %d", lines)
            logging.getLogger("mine").warning("line %d", lines)
            lines += 1
            if process_state() != before:
                differing.append(process_state())
            time.sleep(0.01)

    found: dict[int, Any] = {}

    def work(number: int) -> None:
        found[number] = logits(models[number])

    talker = threading.Thread(target=talk)
    workers = [threading.Thread(target=work, args=[number]) for number in range(len(models))]
    for each in (talker, *workers):
        each.start()
    for each in workers:
        each.join()
    stopped.set()
    talker.join()
    assert all(np.array_equal(found[number], alone[min(number, 2)]) for number in range(4))
    assert not differing
    assert process_state() == before
    assert lines > 50
    assert capsys.readouterr().out.splitlines() == [f"line {number}" for number in range(lines)]
    mine = [each.getMessage() for each in caplog.records if each.name == "mine"]
    assert mine == [f"line {number}" for number in range(lines)]


def test_only_the_quiet_thread_is_quiet(monkeypatch) -> None:
    heard: list[str] = []
    handler = logging.StreamHandler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger("transformers.somewhere")
    monkeypatch.setattr(logger, "handlers", [handler])

    def speak(text: str) -> Any:
        logger.warning(text)
        return transformers.utils.logging.tqdm([1], desc=text, file=open(os.devnull, "w"))

    bars: dict[str, Any] = {"before": speak("before")}
    with quiet_libraries(), quiet_libraries():
        bars["quiet"] = speak("quiet")
        other = threading.Thread(target=lambda: bars.update(other=speak("other")))
        other.start()
        other.join()
    bars["after"] = speak("after")
    assert heard == ["before", "other", "after"]
    empty = {name for name, bar in bars.items() if isinstance(bar, transformers.utils.logging.EmptyTqdm)}
    assert empty == {"quiet"}


def test_progress_of_two_threads_leaves_the_streams_alone() -> None:
    streams = sys.stdout, sys.stderr
    both = threading.Barrier(2)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            progress = TerminalProgress(Console(file=io.StringIO(), force_terminal=True))
            with progress.stage("first"), progress.stage("second"):
                both.wait(10)
                assert (sys.stdout, sys.stderr) == streams
                both.wait(10)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failures
    assert (sys.stdout, sys.stderr) == streams


def test_the_interpreters_variable_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from forerun.execute.triton.sources import INTERPRET, interpreting

    monkeypatch.setenv(INTERPRET, "mine")
    inside = threading.Event()

    def other() -> None:
        with interpreting(False):
            inside.set()

    thread = threading.Thread(target=other)
    with interpreting(True):
        thread.start()
        assert not inside.wait(0.2)
        assert os.environ[INTERPRET] == "1"
    thread.join()
    assert os.environ[INTERPRET] == "mine"


def in_child(work: Callable[[], Any], context: str = "fork") -> Any:
    """The result of a call in a forked child. AssertionError if the child hangs."""
    made = multiprocessing.get_context(context)
    receiving, sending = made.Pipe(duplex=False)

    def child() -> None:
        try:
            sending.send(work())
        except Exception as error:
            sending.send((type(error), str(error)))

    process = made.Process(target=child)
    process.start()
    try:
        assert receiving.poll(LIMIT), "the child hangs"
        return receiving.recv()
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("target", ["cpu", "reference"])
def test_a_forked_child_generates_and_compiles(target: str) -> None:
    first, second = FAMILIES["llama"](), FAMILIES["qwen2"]()
    model = forerun.compile(first, "autoregressive", target=target, max_length=64)
    mine = model.generate(PROMPT, 12).token_ids
    torch.zeros(1 << 20).add_(1)  # torch has threads of its own now
    assert in_child(lambda: model.generate(PROMPT, 12).token_ids) == mine
    assert np.array_equal(in_child(lambda: logits(second, target=target)), logits(second, target=target))
    assert in_child(lambda: in_child(lambda: model.generate(PROMPT, 12).token_ids)) == mine
    assert model.generate(PROMPT, 12).token_ids == mine


def test_a_fork_amid_another_threads_work_is_said() -> None:
    model = forerun.compile(FAMILIES["llama"](), "autoregressive", max_length=64)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with model.engine.serving:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        kind, sentence = in_child(lambda: model.generate(PROMPT, 4))
    finally:
        done.set()
        holder.join()
    assert kind is ForkError
    assert "generating" in sentence
    assert "spawn" in sentence
    assert len(model.generate(PROMPT, 4).token_ids) == 4
    with model.engine.serving:  # the forking thread's own work continues in the child
        assert in_child(lambda: len(model.generate(PROMPT, 4).token_ids)) == 4


def test_turns_are_taken_again_by_their_thread_alone() -> None:
    turn = Turn("testing")
    entered = threading.Event()

    def other() -> None:
        with turn:
            entered.set()

    with turn, turn:
        threading.Thread(target=other).start()
        assert not entered.wait(0.2)
    assert entered.wait(5)


def test_work_is_handed_on_in_a_child_alone() -> None:
    own = with_live_threads(threading.get_ident)
    assert own() == threading.get_ident()
    assert in_child(lambda: own() == threading.get_ident()) is False
    assert in_child(lambda: own() == own())
