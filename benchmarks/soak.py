"""Random clients against a server: what answers do they get, and what is left when they have gone?"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.served import Server

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "told", "keepers", "of", "three", "islands", "in", "it", "sea")
CLIENT = """
import json, sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
for line in urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request):
    pass
"""
"""A client of its own process, which is killed."""
LEFT = ("forerun_texts_running", "forerun_texts_waiting", "forerun_cache_blocks_used")


@dataclass
class Soak:
    """Clients of many kinds, and what came of them."""

    server: Server
    body: int  # the server's limit in bytes
    random: random.Random
    answers: Counter[str] = field(default_factory=Counter[str])
    unexpected: list[str] = field(default_factory=list[str])

    async def run(self, clients: int, seconds: float) -> None:
        """Runs so many clients at a time."""
        until = time.monotonic() + seconds
        kinds = [
            self.whole, self.whole, self.stream, self.stream, self.leaves, self.leaves, self.hangs_up, self.bad_json,
            self.bad_field, self.too_large, self.too_long, self.too_many, self.nowhere, self.killed,
        ]  # fmt: skip

        async def one(client: httpx.AsyncClient) -> None:
            while time.monotonic() < until:
                kind = self.random.choice(kinds)
                try:
                    await kind(client)
                except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
                    self.unexpected.append(f"{kind.__name__}: {type(error).__name__}: {error}")

        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as client:
            await asyncio.gather(*(one(client) for _ in range(clients)))

    def request(self, **fields: Any) -> dict[str, Any]:
        """Returns a random request that is good."""
        chance = self.random
        prompt = " ".join(chance.choices(WORDS, k=chance.randrange(1, 200)))
        found: dict[str, Any] = {"model": self.server.model, "prompt": prompt, "max_tokens": chance.randrange(1, 64)}
        found["temperature"] = chance.choice((0, 0.7, 1.0))
        options = {"n": 2, "seed": chance.randrange(100), "stop": [" the", "\n"], "logprobs": 3, "top_p": 0.9}
        found |= {name: value for name, value in options.items() if chance.random() < 0.3}
        return found | fields

    async def post(self, client: httpx.AsyncClient, expected: tuple[int, ...], **options: Any) -> None:
        answer = await client.post(f"{self.server.url}/v1/completions", **options)
        self.note(answer.status_code, expected, answer.text)

    def note(self, status: int, expected: tuple[int, ...], text: str) -> None:
        self.answers[str(status)] += 1
        shaped = status == 200 or json.loads(text)["error"].keys() == {"message", "type", "param", "code"}
        if status not in expected or "Traceback" in text or not shaped:
            self.unexpected.append(f"{status} where {expected} was expected: {text[:200]}")

    # --- the kinds

    async def whole(self, client: httpx.AsyncClient) -> None:
        await self.post(client, (200, 429), json=self.request())

    async def stream(self, client: httpx.AsyncClient) -> None:
        async with client.stream("POST", f"{self.server.url}/v1/completions", json=self.request(stream=True)) as answer:
            text = (await answer.aread()).decode()
        self.note(answer.status_code, (200, 429), text)
        if answer.status_code == 200 and not text.endswith("data: [DONE]\n\n"):
            self.unexpected.append(f"a stream ends with {text[-200:]!r}")

    async def leaves(self, client: httpx.AsyncClient) -> None:
        """Goes away after a few pieces."""
        body = self.request(stream=True, max_tokens=200)
        async with client.stream("POST", f"{self.server.url}/v1/completions", json=body) as answer:
            left = self.random.randrange(8)
            async for _ in answer.aiter_lines():
                left -= 1
                if left < 0:
                    break
        self.answers["left"] += 1

    async def hangs_up(self, client: httpx.AsyncClient) -> None:
        """Goes away before a whole answer is there."""
        try:
            url, body = f"{self.server.url}/v1/completions", self.request(max_tokens=400)
            await client.post(url, json=body, timeout=self.random.uniform(0.02, 0.5))
        except httpx.TimeoutException:
            pass
        self.answers["hung up"] += 1

    async def bad_json(self, client: httpx.AsyncClient) -> None:
        text = json.dumps(self.request()).encode()
        broken = text[: self.random.randrange(len(text))]
        await self.post(client, (400, 429), content=broken, headers={"Content-Type": "application/json"})

    async def bad_field(self, client: httpx.AsyncClient) -> None:
        name = self.random.choice(("temperature", "n", "max_tokens", "prompt", "stop", "seed", "nonsense", "top_p"))
        await self.post(client, (400, 429), json=self.request(**{name: {"not": "this"}}))

    async def too_large(self, client: httpx.AsyncClient) -> None:
        headers = {"Content-Type": "application/json"}
        try:
            await self.post(client, (413, 429), content=b"a" * (self.body + 1), headers=headers)
        except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):  # refused before it was sent
            self.answers["refused while sending"] += 1

    async def too_long(self, client: httpx.AsyncClient) -> None:
        await self.post(client, (400, 429), json=self.request(prompt="word " * 20_000))

    async def too_many(self, client: httpx.AsyncClient) -> None:
        await self.post(client, (400, 429), json=self.request(n=1000))

    async def nowhere(self, client: httpx.AsyncClient) -> None:
        answer = await client.get(f"{self.server.url}/v1/{self.random.choice(WORDS)}")
        self.note(answer.status_code, (404,), answer.text)

    async def killed(self, client: httpx.AsyncClient) -> None:
        """Another process streams, and is killed with SIGKILL."""
        body = json.dumps(self.request(stream=True, max_tokens=400))
        arguments = ("-c", CLIENT, f"{self.server.url}/v1/completions", body)
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stderr=asyncio.subprocess.DEVNULL)
        await asyncio.sleep(self.random.uniform(0.05, 1.0))
        if process.returncode is None:
            process.kill()
        await process.wait()
        self.answers["killed"] += 1


def left_over(server: Server) -> dict[str, float]:
    """Returns how many texts and blocks of the cache a server still has, when it has had time to let them go."""
    until = time.monotonic() + 10
    while True:
        text = httpx.get(f"{server.url}/metrics", trust_env=False).text
        samples = {each.name: each.value for family in text_string_to_metric_families(text) for each in family.samples}
        found = {name: samples[name] for name in LEFT}
        if not any(found.values()) or time.monotonic() > until:
            return found
        time.sleep(0.1)


def soaked(server: Server, body: int, clients: int, warm: float, seconds: float, seed: int) -> dict[str, Any]:
    """Returns what random clients have come upon. Memory is compared after a warm-up, in which the cache fills."""
    soak = Soak(server, body, random.Random(seed))
    asyncio.run(soak.run(clients, warm))
    left_over(server)
    before = server.resident_bytes()
    asyncio.run(soak.run(clients, seconds))
    left = left_over(server)
    after = server.resident_bytes()
    return {
        "seconds": seconds, "answers": dict(soak.answers), "unexpected": soak.unexpected, "left": left,
        "resident_before": before, "resident_after": after, "growth": after / before - 1,
    }  # fmt: skip
