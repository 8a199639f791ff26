"""A server of an executable without real arithmetic, whose tokens are bytes; run as a module, it is a process."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from openai import OpenAI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.server.limits import Limits
from forerun.server.running import Draining, bound, configured, url_of
from forerun.server.service import Service, fingerprint_of
from tests.runtime.oracle import Oracle, digest_of

SPECIAL = ("<|im_start|>", "<|im_end|>")
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = len(LETTERS) + len(SPECIAL)
END = VOCABULARY - 1
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for each in messages %}<|im_start|>{{ each.role }}\n{{ each.content }}"
    "{% for call in each.tool_calls %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAME = "oracle"


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Each byte is a token, so that most random tokens are parts of characters."""
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(LETTERS)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=SPECIAL[1], chat_template=template)


@dataclass
class Slow(Oracle):
    """Takes a moment for each step, and writes what it is told to after certain prompts."""

    delay: float = 0.0

    def run(self, *arguments: Any, **options: Any) -> Any:
        time.sleep(self.delay)
        return super().run(*arguments, **options)

    def write(self, prompt: list[int], text: list[int]) -> None:
        """Has a text follow a prompt, as good as certainly."""
        digest = 0
        for token in prompt:
            digest = digest_of(digest, token)
        for token in text:
            self.known[digest] = np.where(np.arange(self.vocabulary) == token, 40.0, 0.0).astype(np.float32)
            digest = digest_of(digest, token)


def oracle(delay: float = 0.0, **options: Any) -> Slow:
    return Slow(
        **{"vocabulary": VOCABULARY, "max_length": 512, "max_rows": 48, "max_outputs": 48, "noise": 0.2} | options,
        delay=delay,
    )


def compiled(executable: Slow | None = None) -> CompiledModel:
    return CompiledModel(executable or oracle(), PromptLookup(), Fixed(8), tokenizer(), [END])


@dataclass
class Served:
    """A running server."""

    url: str
    model: CompiledModel
    service: Service
    server: Draining

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0} | options)

    def post(self, path: str = "/v1/completions", **body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json={"model": NAME} | body, timeout=60)

    def idle(self, seconds: float = 10.0) -> bool:
        """Waits until no text is left, and no block of the cache is held."""
        until = time.monotonic() + seconds
        cache, serving = self.model.engine.cache, self.model.serving
        while time.monotonic() < until:
            if not serving.sessions and not cache.is_used and not self.service.admission.texts:
                return True
            time.sleep(0.01)
        return False


def service_of(model: CompiledModel, limits: Limits = Limits()) -> Service:  # noqa: B008
    return Service(model, model.tokenizer, NAME, limits, fingerprint_of(model, []))


@contextmanager
def running(model: CompiledModel, limits: Limits = Limits(), key: str | None = None) -> Iterator[Served]:  # noqa: B008
    listening = bound("127.0.0.1", 0)
    service, ready = service_of(model, limits), threading.Event()
    server = configured(service, key, True, ready.set)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield Served(url_of(listening), model, service, server)
    finally:
        server.handle_exit(15, None)
        server.handle_exit(15, None)
        thread.join(30)
        listening.close()
        assert not thread.is_alive()


if __name__ == "__main__":
    listening = bound("127.0.0.1", 0)
    served = configured(
        service_of(compiled(oracle(delay=float(sys.argv[1]))), Limits(drain=float(sys.argv[2]))),
        None,
        True,
        lambda: print(json.dumps({"url": url_of(listening)}), flush=True),
    )
    served.run([listening])
    sys.exit(1 if served.interrupted else 0)
