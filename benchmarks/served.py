"""Servers as processes on this machine, and clients that stream from them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

LOOPBACK = "127.0.0.1"
PATIENCE = 600.0
"""Seconds in which a server must be ready; the first one may have to compile the model."""


@dataclass(frozen=True)
class Server:
    """A server that is running."""

    name: str
    url: str
    model: str
    pid: int

    def resident_bytes(self) -> int:
        """Returns the memory that its process holds."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Answer:
    """One streamed answer, with its times in seconds since the request was sent."""

    text: str
    first: float  # when the first text came
    last: float


@contextlib.contextmanager
def forerun_server(model: str, dtype: str, threads: int, *options: str) -> Iterator[Server]:
    """Runs `forerun serve`."""
    command = [sys.executable, "-m", "forerun.cli", "serve", model, "--dtype", dtype, "--port", "0", "--json", *options]
    environment = os.environ | {"FORERUN_THREADS": str(threads)}
    with process(command, environment, subprocess.PIPE) as running:
        assert running.stdout is not None
        if not select.select([running.stdout], [], [], PATIENCE)[0] or not (line := running.stdout.readline()):
            raise RuntimeError("forerun serve has not started")
        told = json.loads(line)
        yield Server("forerun", told["url"], told["model"], running.pid)


@contextlib.contextmanager
def llama_server(python: str, file: Path, threads: int, length: int) -> Iterator[Server]:
    """Runs llama-cpp-python's server with another Python, in its faster settings. It answers one by one."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    options = {
        "model": str(file), "host": LOOPBACK, "port": port, "n_ctx": length, "n_threads": threads,
        "n_threads_batch": threads, "interrupt_requests": False, "verbose": False, "model_alias": "llama",
        "logits_all": False,  # by default it computes the logits of all tokens of prompts
    }  # fmt: skip
    command = [
        python,
        "-m",
        "llama_cpp.server",
        *(str(each) for name, value in options.items() for each in (f"--{name}", value)),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with process(command, environment, subprocess.DEVNULL) as running:
        url, until = f"http://{LOOPBACK}:{port}", time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/v1/models", trust_env=False).status_code == 200:
                    break
            if running.poll() is not None or time.monotonic() > until:
                raise RuntimeError("llama_cpp.server has not started: try the command by hand: " + " ".join(command))
            time.sleep(0.1)
        yield Server("llama.cpp", url, "llama", running.pid)


@contextlib.contextmanager
def process(command: Sequence[str], environment: dict[str, str], output: int) -> Iterator[subprocess.Popen[str]]:
    """Runs a process, which ends with the body."""
    running = subprocess.Popen(
        list(command), env=environment, stdout=output, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


async def streamed(client: httpx.AsyncClient, server: Server, prompt: str, count: int) -> Answer:
    """Streams the greedy answer to a question, at most `count` tokens."""
    body = {
        "model": server.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": count,
        "temperature": 0, "stream": True,
    }  # fmt: skip
    began, first, parts = time.perf_counter(), None, list[str]()
    async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{server.name}: {response.status_code} {(await response.aread())[:300]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            told: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if "error" in told:
                raise RuntimeError(f"{server.name}: {told['error']}")
            if text := "".join(choice["delta"].get("content") or "" for choice in told["choices"]):
                first = first or time.perf_counter() - began
                parts.append(text)
    last = time.perf_counter() - began
    return Answer("".join(parts), first or last, last)


async def streamed_by(clients: int, server: Server, prompts: Sequence[str], count: int) -> tuple[list[Answer], float]:
    """Streams the answers to all prompts, so many at a time. Returns them and the seconds that all took."""
    waiting, answers = list(reversed(prompts)), list[Answer]()
    limits = httpx.Limits(max_connections=None)

    async def one(client: httpx.AsyncClient) -> None:
        while waiting:
            answers.append(await streamed(client, server, waiting.pop(), count))

    async with httpx.AsyncClient(timeout=PATIENCE, limits=limits, trust_env=False) as client:
        began = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        return answers, time.perf_counter() - began
