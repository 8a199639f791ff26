"""The contestants: forerun under a strategy, transformers' `generate`, llama.cpp. All decode greedily, batch 1, and
produce exactly the requested number of tokens."""

from __future__ import annotations

import ctypes
import importlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import transformers_model
from forerun.errors import ForerunError
from forerun.frontends.gguf_place import is_gguf
from forerun.runtime.model import CompiledModel
from forerun.storage import cache_directory


class PeerAbsentError(ForerunError):
    """A peer cannot take part; the message says why and what to do."""


@dataclass
class Clock:
    """Records by the streamer interface when tokens arrive: the prompt first, then each delivery of tokens."""

    began: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list[float])
    counts: list[int] = field(default_factory=list[int])

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())
        self.counts.append(len(value.reshape(-1)))

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class Run:
    """One generation, timed alike for all contestants: the prefill ends with the first delivery of tokens."""

    token_ids: list[int]
    first_seconds: float  # from the call to the first delivery of tokens
    decode_seconds: float  # from the first delivery to the last token
    decoded: int  # tokens after the first delivery
    accepted_length: float = 1.0

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first delivery."""
        return self.decoded / self.decode_seconds

    @property
    def rate(self) -> float:
        """Tokens per second from the call to the last token, the prompt included in the time."""
        return len(self.token_ids) / (self.first_seconds + self.decode_seconds)

    @classmethod
    def of(cls, clock: Clock, token_ids: list[int], accepted_length: float = 1.0) -> Run:
        """`clock` has seen the prompt and then the tokens."""
        first, last = clock.times[1], clock.times[-1]
        return cls(token_ids, first - clock.began, last - first, sum(clock.counts[2:]), accepted_length)


class Contestant(Protocol):
    name: str

    def generate(self, prompt: list[int], count: int) -> Run:
        """Generates `count` new tokens; no token ends the text."""
        ...


@dataclass
class Forerun:
    name: str
    model: CompiledModel

    def generate(self, prompt: list[int], count: int) -> Run:
        self.model.engine.cache.forget_ended()  # or it would know the prompts that begin alike
        clock = Clock()
        out = self.model.generate(prompt, max_new_tokens=count, eos_token_id=[], do_sample=False, streamer=clock)
        return Run.of(clock, out.token_ids, out.stats.accepted_length)


@dataclass
class Transformers:
    """`generate` of the model as transformers loads it: bfloat16 is its own, quantized blocks are dequantized."""

    model: Any
    name: str = "transformers"

    @classmethod
    def open(cls, path: Path, dtype: str, threads: int) -> Transformers:
        torch.set_num_threads(threads)
        model = transformers_model(path)
        return cls(model.to(torch.bfloat16) if dtype == "bfloat16" else model)

    def generate(self, prompt: list[int], count: int) -> Run:
        inputs = torch.tensor([prompt])
        clock = Clock()
        with torch.inference_mode():
            out = self.model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),  # otherwise padding tokens inside the prompt would be masked
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                streamer=clock,
            )
        return Run.of(clock, out[0, len(prompt) :].tolist())


FILE_TYPES = {"float32": "LLAMA_FTYPE_ALL_F32", "bfloat16": "LLAMA_FTYPE_MOSTLY_BF16"}
"""llama.cpp's names of the precisions; `native` is the file itself."""


class LlamaCpp:
    """llama.cpp through llama-cpp-python: its own loop of decode and greedy sampler, no logits copied to Python.

    Its keys and values are float16, its default.
    """

    name = "llama.cpp"
    batch = 512  # prompt tokens per call, its default

    def __init__(self, library: Any, path: Path, threads: int, length: int = 2048) -> None:
        self._library = library
        self._model = library.Llama(
            str(path), n_ctx=length, n_batch=self.batch, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self._context = self._model._ctx.ctx
        self._sampler = library.llama_sampler_init_greedy()

    @classmethod
    def open(cls, path: Path, dtype: str, threads: int) -> LlamaCpp:
        return cls(*llama_cpp(path, dtype, threads), threads)

    def generate(self, prompt: list[int], count: int) -> Run:
        library, context, clock = self._library, self._context, Clock()
        clock.put(torch.tensor(prompt))
        library.llama_memory_clear(library.llama_get_memory(context), True)
        for start in range(0, len(prompt), self.batch):
            self._decode(prompt[start : start + self.batch])
        tokens: list[int] = []
        while True:
            tokens.append(library.llama_sampler_sample(self._sampler, context, -1))
            clock.times.append(time.perf_counter())
            clock.counts.append(1)
            if len(tokens) == count:
                return Run.of(clock, tokens)
            self._decode(tokens[-1:])

    @staticmethod
    def logits_of(path: Path, threads: int | None = None) -> Callable[[Any], NDArray[np.float32]]:
        """Returns a function of a text's `prompt` and `continuation`: the logits [n, V] that choose the latter."""
        library = importlib.import_module("llama_cpp")
        model = library.Llama(str(path), n_ctx=4096, n_threads=threads, logits_all=True, verbose=False)

        def logits(text: Any) -> NDArray[np.float32]:
            model.reset()
            model.eval([*text.prompt, *text.continuation[:-1]])
            first = len(text.prompt) - 1
            return model.scores[first : first + len(text.continuation)].copy()

        return logits

    def _decode(self, tokens: Sequence[int]) -> None:
        array = (self._library.llama_token * len(tokens))(*tokens)
        failed = self._library.llama_decode(self._context, self._library.llama_batch_get_one(array, len(tokens)))
        if failed:
            raise RuntimeError(f"llama_decode gave {failed}")


@dataclass
class LlamaLookup:
    """llama.cpp with its prompt lookup, which llama-cpp-python verifies greedily, logits copied to Python."""

    model: Any

    name = "llama.cpp lookup"

    @classmethod
    def open(cls, path: Path, dtype: str, threads: int) -> LlamaLookup:
        plain = LlamaCpp.open(path, dtype, threads)  # raises if it takes no part
        drafts = importlib.import_module("llama_cpp.llama_speculative").LlamaPromptLookupDecoding(num_pred_tokens=10)
        kept = requantized(plain._library, path, dtype, threads)
        options = {"n_ctx": 2048, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
        return cls(plain._library.Llama(str(kept), draft_model=drafts, logits_all=True, **options))

    def generate(self, prompt: list[int], count: int) -> Run:
        self.model.reset()  # or it would know the prompts that begin alike
        clock, tokens = Clock(), list[int]()
        clock.put(torch.tensor(prompt))
        for token in self.model.generate(prompt, temp=0.0, repeat_penalty=1.0):
            tokens.append(token)
            clock.times.append(time.perf_counter())
            clock.counts.append(1)
            if len(tokens) == count:
                break
        return Run.of(clock, tokens)


def llama_cpp(path: Path, dtype: str, threads: int) -> tuple[Any, Path]:
    """The library, and the file at a precision that it reads. Raises `PeerAbsentError`."""
    try:
        library = importlib.import_module("llama_cpp")
    except ImportError as error:
        raise PeerAbsentError(
            "llama.cpp takes no part: run `pip install llama-cpp-python` (it needs a C++ compiler and CMake)."
        ) from error
    if not is_gguf(path):
        raise PeerAbsentError(f"llama.cpp takes no part: it reads GGUF files, and {path} is none.")
    return library, requantized(library, path, dtype, threads)


def requantized(library: Any, path: Path, dtype: str, threads: int) -> Path:
    """The GGUF file at a precision, made by llama.cpp's own quantizer and cached in forerun's cache directory."""
    if dtype == "native":
        return path
    folder = cache_directory() / "peers"
    kept = folder / f"{path.stem}-{path.stat().st_size}-{dtype}.gguf"
    if kept.exists():
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    library.llama_log_set(silence(library), ctypes.c_void_p(0))
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype = getattr(library, FILE_TYPES[dtype])
    parameters.allow_requantize = True  # from 4 bits up: nothing is lost
    parameters.nthread = threads
    handle, name = tempfile.mkstemp(dir=folder, prefix=".incomplete-", suffix=".gguf")
    os.close(handle)
    try:
        failed = library.llama_model_quantize(str(path).encode(), name.encode(), ctypes.byref(parameters))
        if failed:
            raise PeerAbsentError(f"llama.cpp takes no part: it cannot write {path.name} as {dtype}.")
        os.replace(name, kept)
    finally:
        Path(name).unlink(missing_ok=True)
    return kept


@cache
def silence(library: Any) -> Any:
    """A log function that drops everything; llama.cpp keeps a pointer to it, so it must outlive the call."""
    return library.llama_log_callback(lambda level, text, data: None)


PEERS: dict[str, Callable[[Path, str, int], Contestant]] = {
    "transformers": Transformers.open,
    "llama.cpp": LlamaCpp.open,
    "llama.cpp lookup": LlamaLookup.open,
}
