"""llama.cpp's batched decoding, through llama-cpp-python's low-level interface."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import llama_cpp, silence

LARGEST = 512  # tokens of a call, its default


class LlamaBatches:
    """Decodes several prompts together: their tokens share calls, one sequence number each, greedy by its sampler."""

    def __init__(self, library: Any, path: Path, threads: int) -> None:
        self._library, self._path, self._threads = library, path, threads
        library.llama_log_set(silence(library), ctypes.c_void_p(0))
        parameters = library.llama_model_default_params()
        self._model = library.llama_model_load_from_file(str(path).encode(), parameters)
        self._sampler = library.llama_sampler_init_greedy()

    @classmethod
    def open(cls, path: Path, dtype: str, threads: int) -> LlamaBatches:
        return cls(*llama_cpp(path, dtype, threads), threads)

    def generate(self, prompts: Sequence[list[int]], count: int) -> list[list[int]]:
        """Returns `count` new tokens of each prompt."""
        library = self._library
        longest = max(map(len, prompts)) + count
        parameters = library.llama_context_default_params()
        parameters.n_seq_max = len(prompts)
        parameters.n_ctx = -(-longest // 256) * 256 * len(prompts)
        parameters.n_batch = parameters.n_ubatch = LARGEST
        parameters.n_threads = parameters.n_threads_batch = self._threads
        context = library.llama_init_from_model(self._model, parameters)
        batch = library.llama_batch_init(LARGEST, 0, 1)
        try:
            texts: list[list[int]] = [[] for _ in prompts]
            for number, prompt in enumerate(prompts):
                for start in range(0, len(prompt), LARGEST):
                    rows = [(token, start + at, number) for at, token in enumerate(prompt[start : start + LARGEST])]
                    self._decode(context, batch, rows, last_only=True)
                texts[number].append(library.llama_sampler_sample(self._sampler, context, -1))
            while len(texts[0]) < count:
                rows = [
                    (text[-1], len(prompt) + len(text) - 1, number)
                    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
                ]
                self._decode(context, batch, rows, last_only=False)
                for number, text in enumerate(texts):
                    text.append(library.llama_sampler_sample(self._sampler, context, number))
            return texts
        finally:
            library.llama_batch_free(batch)
            library.llama_free(context)

    def _decode(self, context: Any, batch: Any, rows: Sequence[tuple[int, int, int]], last_only: bool) -> None:
        batch.n_tokens = len(rows)
        for at, (token, position, sequence) in enumerate(rows):
            batch.token[at], batch.pos[at] = token, position
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
            batch.logits[at] = not last_only or at == len(rows) - 1
        failed = self._library.llama_decode(context, batch)
        if failed:
            raise RuntimeError(f"llama_decode gave {failed}")
