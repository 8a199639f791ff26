"""The compiled model: what `forerun.compile` returns."""

import os
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Unpack

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.calibration import CostModel
from forerun.runtime.device_loop import OnDevice
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Executable, Float32
from forerun.runtime.generation import Generation, Request, Stats, Step, decode
from forerun.runtime.keywords import UNSET, Keywords, Unset, understood
from forerun.runtime.options import require_room
from forerun.runtime.policy import Fixed, Policy
from forerun.runtime.prompt import prompt_tokens
from forerun.runtime.stopping import until
from forerun.runtime.tree import Tree, check


class Tokenizer(Protocol):
    """The part of transformers' and tokenizers' interface that is used."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = ...) -> Any: ...


class Streamer(Protocol):
    """transformers' streamers: the prompt first, as a tensor [1, T], then each step's new tokens [k], then the end."""

    def put(self, value: Any) -> None: ...

    def end(self) -> None: ...


class Export(Protocol):
    """Writes a compiled model to a bundle (`CompiledModel.export`)."""

    def __call__(
        self,
        model: "CompiledModel",
        folder: str | os.PathLike[str],
        format: str = ...,
        force: bool = ...,
        mcpu: str | None = ...,
        mtriple: str | None = ...,
    ) -> Path: ...


@dataclass(frozen=True)
class Origin:
    """What a model was compiled from, and how."""

    source: str  # the name of a file or a directory, or the class of a model
    target: str
    dtype: str


def source_name(source: Any) -> str:
    """Returns a source's name in a repr."""
    if isinstance(source, str | os.PathLike):
        return os.path.basename(os.path.normpath(os.fspath(source)))
    return type(source).__name__


class CompiledModel:
    """A model that generates. Requests are served one at a time; one that fails leaves the model unchanged."""

    def __init__(
        self,
        executable: Executable,
        drafter: Drafter | None = None,
        policy: Policy | None = None,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: Iterable[int] = (),
        cost: CostModel | None = None,
        engine: Engine | None = None,
        on_device: OnDevice | None = None,
        strategy: object = None,
        origin: Origin | None = None,
        exporter: Export | None = None,
    ) -> None:
        """Without a drafter, decoding is plain. `eos_token_ids` end a text unless `generate` is given others.

        `on_device`: the same schedule without the host, for the requests that it serves.
        `strategy`: what drafter and policy were built from.
        `engine`: one that already runs this executable, such as for calibration; by default a new one with room for
        one sequence of `max_length`.
        """
        self.executable = executable
        self.engine = engine or Engine(executable)
        self.drafter = drafter or Drafter()
        self.policy = policy or Fixed(1 if drafter is None else min(16, executable.max_rows))
        self.tokenizer = tokenizer
        self.eos_token_ids = frozenset(eos_token_ids)
        self.cost = cost
        self.on_device = on_device
        self.strategy = strategy
        self.origin = origin
        self.exporter = exporter

    @property
    def max_length(self) -> int:
        """The most positions of a text, prompt and new tokens together."""
        return self.executable.max_length

    @property
    def target(self) -> str | None:
        """The back end that the model was compiled for, such as "cpu"; None if only the executable is known."""
        return self.origin.target if self.origin else None

    @property
    def dtype(self) -> str | None:
        """The weight dtype, such as "float32"; None if only the executable is known."""
        return self.origin.dtype if self.origin else None

    def __repr__(self) -> str:
        origin = self.origin
        told = [] if origin is None else [repr(origin.source), f"target={origin.target!r}", f"dtype={origin.dtype!r}"]
        if self.strategy is not None:
            told.append(f"strategy={self.strategy!r}")
        layers = len({branch.layer for branch in self.executable.branches})
        told.extend([f"layers={layers}"] if layers else [])
        told += [f"vocabulary={self.executable.vocabulary}", f"max_length={self.max_length}"]
        return f"CompiledModel({', '.join(told)})"

    def generate(
        self,
        input_ids: Any = None,
        max_new_tokens: int | Unset | None = UNSET,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        eos_token_id: int | Sequence[int] | None = None,
        return_logits: bool = False,
        streamer: Streamer | None = None,
        **keywords: Unpack[Keywords],
    ) -> Generation:
        """Continue a prompt: token ids as a list, an array or a tensor, [T] or [1, T], or a tokenizer's encoding.

        The keywords are those of transformers' `generate` (`runtime.keywords.Keywords`). The only defaults are those of
        the signature, 128 new tokens, and the model's own `eos_token_id` (`[]` for none).
        Raises `PromptError`, `TooLongError`, `InvalidOptionError`, and `NotANumberError` at NaN logits.
        """
        named = {
            "max_new_tokens": max_new_tokens, "do_sample": do_sample, "temperature": temperature, "top_k": top_k,
            "top_p": top_p, "seed": seed, "eos_token_id": eos_token_id, "return_logits": return_logits,
            "streamer": streamer,
        }  # fmt: skip
        asked = understood(input_ids, named | dict(keywords), self.executable.vocabulary, self.eos_token_ids)
        request = asked.request
        tokens: list[int] = []
        logits: list[Float32] = []
        with self.engine.serving, closing(self.steps(request)) as steps:
            if streamer:
                streamer.put(_tensor([request.prompt]))
            meter = _Meter()
            for step in until(steps, request, asked.criteria, asked.scores):
                meter.observe(step)
                tokens.extend(step.tokens)
                if step.logits is not None:
                    logits.append(step.logits)
                if streamer and step.tokens:
                    streamer.put(_tensor(step.tokens))
            if streamer:
                streamer.end()
        text = self.tokenizer.decode(tokens, skip_special_tokens=True) if self.tokenizer else None
        kept = np.concatenate(logits) if request.keep_logits else None
        scores = None
        if kept is not None and asked.scores is not None:
            scores = np.stack([asked.scores(row, number) for number, row in enumerate(kept)])
        return Generation(tokens, kept, text, meter.stats(), request.prompt, scores)

    def export(
        self,
        folder: str | os.PathLike[str],
        format: str = "onnx",
        force: bool = False,
        mcpu: str | None = None,
        mtriple: str | None = None,
    ) -> Path:
        """Writes the model as a bundle, which `forerun.load` runs without the compiler; returns its folder.

        folder      a path that does not exist, or an empty folder; with `force`, another bundle, which is replaced
        format      "onnx", for ONNX Runtime in any language; "tvm", a library for this processor or for `mcpu`;
                    "triton", kernels for NVIDIA GPUs
        mcpu, mtriple   another processor and system than this machine's, by LLVM's names ("tvm" alone)

        Raises `InvalidOptionError`; the folder is then as it was before.
        """
        if self.exporter is None:
            raise InvalidOptionError(
                "this model was not compiled here, so it cannot be exported: compile its source with forerun.compile "
                "and export that, or copy the bundle's folder"
            )
        return self.exporter(self, folder, format, force, mcpu, mtriple)

    def steps(self, request: Request) -> Generator[Step]:
        """Iterates over the loop's steps, in one thread. Close the iterator to free the cache before the text's end.

        Raises `PromptError`, `TooLongError`, `InvalidOptionError`, and `NotANumberError` at NaN logits.
        """
        request = replace(request, prompt=prompt_tokens(request.prompt, self.executable.vocabulary))
        require_room(len(request.prompt), request.max_new_tokens, self.executable.max_length)
        return self._steps(request)

    def _steps(self, request: Request) -> Generator[Step]:
        """Decodes on the device if, at the first step, it is free and serves such a request; otherwise on the host."""
        if self.on_device is not None and self.on_device.serves(self.executable, request):
            yield from self.on_device.decode(self.engine, request)
        else:
            yield from decode(self.engine, request, self.drafter, self.policy)

    def evaluate_trees(self, prompts: Sequence[Any], trees: Sequence[Tree]) -> list[Float32]:
        """Returns the logits [n, V] of each tree's rows; all trees are evaluated in one step.

        A tree's root is the last token of its prompt. Raises `PromptError`, `TooLongError` and
        `InvalidOptionError`.
        """
        if len(prompts) != len(trees) or not trees:
            raise InvalidOptionError(f"{len(prompts)} prompts and {len(trees)} trees: give one tree for each prompt")
        tokens = [prompt_tokens(prompt, self.executable.vocabulary) for prompt in prompts]
        trees = [check(tree, self.executable.vocabulary) for tree in trees]
        for prompt, tree in zip(tokens, trees, strict=True):
            if prompt[-1] != tree.token[0]:
                raise InvalidOptionError(
                    f"a tree's root must be its prompt's last token, {prompt[-1]}, not {tree.token[0]}"
                )
        with self.engine.serving, ExitStack() as stack:
            sequences = [
                stack.enter_context(self.engine.sequence(len(prompt) + tree.height))
                for prompt, tree in zip(tokens, trees, strict=True)
            ]
            for sequence, prompt in zip(sequences, tokens, strict=True):
                self.engine.begin(sequence, {})
                self.engine.prefill(sequence, np.array(prompt[:-1], np.int32))
            results = self.engine.step(sequences, trees)
            return [np.stack([result.logits(row) for row in range(len(result.tree))]) for result in results]


class _Meter:
    """Counts and times the steps of a generation."""

    def __init__(self) -> None:
        self._steps = self._rows = self._tokens = 0
        self._prefilled = self._ended = self._began = time.perf_counter()

    def observe(self, step: Step) -> None:
        self._ended = time.perf_counter()
        if step.rows == 0:
            self._prefilled = self._ended
            return
        self._steps += 1
        self._rows += step.rows
        self._tokens += len(step.tokens)

    def stats(self) -> Stats:
        prefill, decoding = self._prefilled - self._began, self._ended - self._prefilled
        return Stats(self._steps, self._rows, self._tokens, prefill, decoding)


def _tensor(token_ids: Any) -> Any:
    """Streamers written for transformers expect torch's tensors; where torch is not in use, an array will do."""
    if "torch" not in sys.modules:
        return np.array(token_ids, np.int64)
    import torch

    return torch.tensor(token_ids, dtype=torch.int64)
