"""The compiled model: what `forerun.compile` returns."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Unpack, overload

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.calibration import CostModel
from forerun.runtime.device_loop import OnDevice
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Executable, Float32
from forerun.runtime.guiding import guided
from forerun.runtime.hooks.grammars import Grammars
from forerun.runtime.keywords import NONE, UNSET, Asked, Unset, understood_all
from forerun.runtime.known_keywords import Keywords
from forerun.runtime.options import require_room
from forerun.runtime.policy import Fixed, Policy
from forerun.runtime.prompt import prompt_tokens
from forerun.runtime.request import Generation, Request, Step
from forerun.runtime.search.policies import SearchPolicy, keywords_of
from forerun.runtime.search.searching import search
from forerun.runtime.serving import Serving
from forerun.runtime.spelling import Tokenizer
from forerun.runtime.texts import Piece, Sessions, Stream, TextReader
from forerun.runtime.tree import Tree, check


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
    """A model that generates, for any number of threads. Requests share steps; one that fails ends alone."""

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
        defaults: Mapping[str, Any] = NONE,
    ) -> None:
        """Without a drafter, decoding is plain. `eos_token_ids` end a text unless `generate` is given others.

        `on_device`: the same schedule without the host, for the requests that it serves.
        `strategy`: what drafter and policy were built from.
        `engine`: one that already runs this executable, such as for calibration; by default a new one with room for
        one sequence of `max_length`.
        `defaults`: keywords of `generate` that apply unless they are given, as the generation config beside a model
        has them.
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
        self.defaults = dict(defaults)
        self._grammars = Grammars(tokenizer, executable.vocabulary, self.eos_token_ids)
        self.serving = Serving(self.engine, self.drafter, self.policy)

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

    @property
    def overrides(self) -> dict[str, str]:
        """The kernels that are not as generated, edited or tuned, and what is other about them, in words."""
        return dict(getattr(self.executable, "overrides", {}))

    def __repr__(self) -> str:
        origin = self.origin
        told = [] if origin is None else [repr(origin.source), f"target={origin.target!r}", f"dtype={origin.dtype!r}"]
        if self.strategy is not None:
            told.append(f"strategy={self.strategy!r}")
        layers = len({branch.layer for branch in self.executable.branches})
        told.extend([f"layers={layers}"] if layers else [])
        told += [f"vocabulary={self.executable.vocabulary}", f"max_length={self.max_length}"]
        return f"CompiledModel({', '.join(told)})"

    @overload
    def generate(  # pyright: ignore[reportOverlappingOverload]
        self, input_ids: list[str] | list[list[int]], *arguments: Any, **keywords: Any
    ) -> list[Generation]: ...
    @overload
    def generate(self, input_ids: Any = None, *arguments: Any, **keywords: Any) -> Generation: ...
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
    ) -> Generation | list[Generation]:
        """Continue a prompt, or several together: texts, token ids, or what a tokenizer returns.

        One prompt, which gives one `Generation`, is a text, or token ids as a list, an array or a tensor, [T] or, as an
        array, [1, T]. Several, which give a list, are a list of those, an array [B, T], or a tokenizer's encoding of
        several texts, padded on either side. What a prompt gives does not depend on the others.

        The keywords are those of transformers' `generate` (`runtime.known_keywords.Keywords`). Defaults: those of the
        signature, 128 new tokens, and the model's own: `eos_token_ids` (`eos_token_id=[]`: none) and `defaults`.
        Raises `PromptError`, `TooLongError`, `InvalidOptionError`, and `NotANumberError` at NaN logits.
        """
        named = {
            "max_new_tokens": max_new_tokens, "do_sample": do_sample, "temperature": temperature, "top_k": top_k,
            "top_p": top_p, "seed": seed, "eos_token_id": eos_token_id, "return_logits": return_logits,
            "streamer": streamer,
        }  # fmt: skip
        asked, several = self._asked(input_ids, named | dict(keywords))
        beams = [(each, each.beams) for each in asked if each.beams is not None]
        if beams:
            searches = (search(self.serving, *each, self.tokenizer)[: each[0].returned] for each in beams)
            found = [text for texts in searches for text in texts]
            return found if several else found[0]
        if several:
            return Sessions(self.serving, asked, self.tokenizer, self._room).generations()
        with closing(self._steps(asked[0].request)) as steps:
            if streamer:
                streamer.put(_tensor([asked[0].request.prompt]))
            reader = TextReader(asked[0], self.tokenizer)
            for step in steps:
                tokens = reader.take(step)
                if streamer and tokens:
                    streamer.put(_tensor(tokens))
                if reader.finished:
                    break
            if streamer:
                streamer.end()
        return reader.generation()

    def search(self, input_ids: Any, policy: SearchPolicy, **keywords: Any) -> list[Generation]:
        """Returns the texts that a search finds for a prompt, the best first, each with its `score`.

        policy      `forerun.search.BeamSearch`, `BestOf` or `Scored`
        keywords    those of `generate` that do not say how to search

        The texts do not depend on the strategy. Raises what `generate` raises, and whatever a scorer raises.
        """
        asked, several = self._asked(input_ids, keywords_of(policy, keywords), streams=True)
        if several:
            raise InvalidOptionError("a search takes one prompt and one policy: give one prompt at a time")
        return search(self.serving, asked[0], policy, self.tokenizer)

    def stream(self, input_ids: Any = None, **keywords: Any) -> Stream:
        """Continues one prompt piece by piece; takes the keywords of `generate`, except `streamer`.

        Close the stream to end the text early.
        """
        asked, several = self._asked(input_ids, keywords, streams=True)
        if several:
            raise InvalidOptionError("a stream has one text: give one prompt, or use model.sessions")
        reader, request = TextReader(asked[0], self.tokenizer), asked[0].request
        if self.on_device is not None and self.on_device.serves(self.executable, request):
            steps = self._steps(request)  # the device serves it if it is free at the first step

            def close() -> None:
                with suppress(ValueError):  # another thread waits for the next step, and will find the text finished
                    steps.close()

            return Stream(steps, reader, close, lambda: None)
        serving, sessions = self.serving, self.serving.begin([request])
        return Stream(
            serving.steps(sessions[0]), reader, lambda: serving.cancel(sessions), lambda: serving.abandon(sessions)
        )

    def sessions(self, input_ids: Any = None, **keywords: Any) -> Sessions:
        """Continues prompts together, step by step; takes the keywords of `generate`, except `streamer`.

            for session in model.sessions(prompts, max_new_tokens=64):
                print(session.index, session.new_tokens, session.finished)

        Each iteration yields a session that has new tokens or has ended. A session can be cancelled and forked.
        """
        asked, _ = self._asked(input_ids, keywords, streams=True)
        return Sessions(self.serving, asked, self.tokenizer, self._room)

    def asked(self, input_ids: Any = None, **keywords: Any) -> list[Asked]:
        """Returns the requests that `sessions` would decode, checked: for those that read steps themselves."""
        return self._asked(input_ids, keywords, streams=True)[0]

    async def generate_async(self, input_ids: Any = None, **keywords: Any) -> Any:
        """Like `generate`, without blocking the event loop. A cancelled task ends its texts."""
        asked, several = self._asked(input_ids, keywords, streams=True)
        sessions = Sessions(self.serving, asked, self.tokenizer, self._room)
        try:
            with _thread() as run:
                found = await run(sessions.generations)
        finally:
            sessions.close()
        return found if several else found[0]

    async def stream_async(self, input_ids: Any = None, **keywords: Any) -> AsyncGenerator[Piece]:
        """Like `stream`, without blocking the event loop. A cancelled task ends its text."""
        stream = self.stream(input_ids, **keywords)
        try:
            with _thread() as run:
                while (piece := await run(next, stream, None)) is not None:
                    yield piece
        finally:
            stream.close()

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
        """Iterates over a session's steps. Close the iterator to free the cache before the text's end.

        Raises `PromptError`, `TooLongError`, `InvalidOptionError`, and `NotANumberError` at NaN logits.
        """
        return self._steps(replace(request, prompt=self._room(request.prompt, request.max_new_tokens)))

    def _steps(self, request: Request) -> Generator[Step]:
        """Decodes on the device if, at the first step, it is free and serves such a request; otherwise on the host.

        The device decodes one text at a time; sessions may run steps on the host between its reports.
        """
        steps: Generator[Step] | None = None
        step: Step | None = None
        if self.on_device is not None and self.serving.is_idle:
            with self.engine.serving:
                if self.on_device.serves(self.executable, request):
                    steps = self.on_device.decode(self.engine, request)
                    step = next(steps, None)  # from now on it is busy
        if steps is None:
            [session] = self.serving.begin([request])
            yield from self.serving.steps(session)
            return
        try:
            while step is not None:
                yield step
                with self.engine.serving:
                    step = next(steps, None)
                    self.engine.runs += 1
        finally:
            with self.engine.serving:
                steps.close()

    def _asked(self, input_ids: Any, keywords: Mapping[str, Any], streams: bool = False) -> tuple[list[Asked], bool]:
        """Returns what a call requests for each text, checked, and whether it returns a list.

        `streams`: it hands out tokens itself.
        """
        if streams and keywords.get("streamer") is not None:
            raise InvalidOptionError("only generate takes a streamer: leave it out, and read what this returns")
        of_model = self.executable.vocabulary, self.eos_token_ids, self.tokenizer, self.defaults, self._grammars
        asked, several = understood_all(input_ids, keywords, *of_model)
        if streams and asked[0].beams is not None:
            raise InvalidOptionError("only generate takes num_beams: leave it out, or use generate or search")
        asked = guided(self, asked)
        for each in asked:
            require_room(len(each.request.prompt), each.request.max_new_tokens, self.executable.max_length)
        return asked, several

    def _room(self, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
        """Returns a checked prompt, if there is room for so many tokens after it."""
        tokens = prompt_tokens(prompt, self.executable.vocabulary)
        require_room(len(tokens), max_new_tokens, self.executable.max_length)
        return tokens

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


@contextmanager
def _thread() -> Generator[Callable[..., Awaitable[Any]]]:
    """Yields a way to run functions in a thread of their own: those of the event loop are few, and others need them."""
    pool, loop = ThreadPoolExecutor(1, "forerun"), asyncio.get_running_loop()
    try:
        yield lambda work, *arguments: loop.run_in_executor(pool, work, *arguments)
    finally:
        pool.shutdown(wait=False)


def _tensor(token_ids: Any) -> Any:
    """Streamers written for transformers expect torch's tensors; where torch is not in use, an array will do."""
    if "torch" not in sys.modules:
        return np.array(token_ids, np.int64)
    import torch

    return torch.tensor(token_ids, dtype=torch.int64)
