"""The compiled model: what `forerun.compile` returns."""

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, Protocol

import numpy as np

from forerun.errors import InvalidOptionError, PromptError
from forerun.runtime.calibration import CostModel
from forerun.runtime.device_loop import OnDevice
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Executable, Float32
from forerun.runtime.generation import Generation, Request, Stats, Step, decode
from forerun.runtime.options import require_integer, require_room
from forerun.runtime.policy import Fixed, Policy
from forerun.runtime.sampling import SamplingSettings
from forerun.runtime.tree import Tree, check


class Tokenizer(Protocol):
    """The part of transformers' and tokenizers' interface that is used."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = ...) -> Any: ...


class Streamer(Protocol):
    """transformers' streamers: the prompt first, as a tensor [1, T], then each step's new tokens [k], then the end."""

    def put(self, value: Any) -> None: ...

    def end(self) -> None: ...


class CompiledModel:
    """A model that generates. Requests are served one at a time; one that fails leaves the model as it was."""

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
    ) -> None:
        """Without a drafter it decodes plainly. `eos_token_ids` end a text unless `generate` is told others.

        `on_device`: the same schedule without the host, for the requests that it serves.

        `engine`: one that already runs this executable, say for calibration; by default a new one with room for one
        sequence of `max_length`.
        """
        self.executable = executable
        self.engine = engine or Engine(executable)
        self.drafter = drafter or Drafter()
        self.policy = policy or Fixed(1 if drafter is None else min(16, executable.max_rows))
        self.tokenizer = tokenizer
        self.eos_token_ids = frozenset(eos_token_ids)
        self.cost = cost
        self.on_device = on_device

    def generate(
        self,
        input_ids: Any,
        max_new_tokens: int = 128,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        eos_token_id: int | Sequence[int] | None = None,
        return_logits: bool = False,
        streamer: Streamer | None = None,
    ) -> Generation:
        """Continue a prompt: token ids as a list, an array or a tensor, [T] or [1, T].

        The keywords are those of transformers' `generate`. `eos_token_id`: the model's own by default, `[]` for none.
        Raises `PromptError`, `TooLongError` and `InvalidOptionError`.
        """
        prompt = prompt_tokens(input_ids, self.executable.vocabulary)
        request = Request(
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            sampling=SamplingSettings(do_sample, temperature, top_k, top_p, seed),
            stop=self._stop_tokens(eos_token_id),
            keep_logits=return_logits,
        )
        tokens: list[int] = []
        logits: list[Float32] = []
        with self.engine.serving, closing(self.steps(request)) as steps:
            if streamer:
                streamer.put(_tensor([prompt]))
            meter = _Meter()
            for step in steps:
                meter.observe(step)
                tokens.extend(step.tokens)
                if step.logits is not None:
                    logits.append(step.logits)
                if streamer and step.tokens:
                    streamer.put(_tensor(step.tokens))
            if streamer:
                streamer.end()
        text = self.tokenizer.decode(tokens, skip_special_tokens=True) if self.tokenizer else None
        return Generation(tokens, np.concatenate(logits) if return_logits else None, text, meter.stats())

    def steps(self, request: Request) -> Generator[Step]:
        """The loop, a step at a time, for one thread. Close the iterator to free the cache before the text's end."""
        require_room(len(request.prompt), request.max_new_tokens, self.executable.max_length)
        return self._steps(request)

    def _steps(self, request: Request) -> Generator[Step]:
        """Decided when the first step is asked for: by the device, if it is free then and chooses such tokens."""
        if self.on_device is not None and self.on_device.serves(self.executable, request):
            yield from self.on_device.decode(self.engine, request)
        else:
            yield from decode(self.engine, request, self.drafter, self.policy)

    def evaluate_trees(self, prompts: Sequence[Any], trees: Sequence[Tree]) -> list[Float32]:
        """The logits [n, V] of each tree's rows, all trees evaluated in one step.

        A tree's root stands for the last token of its prompt. Raises `PromptError`, `TooLongError` and
        `InvalidOptionError`.
        """
        if len(prompts) != len(trees) or not trees:
            raise InvalidOptionError(f"{len(prompts)} prompts and {len(trees)} trees: give one tree for each prompt")
        tokens = [prompt_tokens(prompt, self.executable.vocabulary) for prompt in prompts]
        for prompt, tree in zip(tokens, trees, strict=True):
            check(tree, self.executable.vocabulary)
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
                self.engine.prefill(sequence, np.array(prompt[:-1], np.int32))
            results = self.engine.step(sequences, trees)
            return [np.stack([result.logits(row) for row in range(len(result.tree))]) for result in results]

    def _stop_tokens(self, eos_token_id: int | Sequence[int] | None) -> frozenset[int]:
        if eos_token_id is None:
            return self.eos_token_ids
        try:
            given = np.asarray(eos_token_id)
        except ValueError as error:
            raise InvalidOptionError("eos_token_id must be a token id or one list of them: give a flat list") from error
        if given.size and not np.issubdtype(given.dtype, np.integer):
            raise InvalidOptionError(f"eos_token_id must be a token id or a list of them, not {eos_token_id!r}")
        most = self.executable.vocabulary - 1
        return frozenset(require_integer("eos_token_id", each, 0, most) for each in given.reshape(-1).tolist())


class _Meter:
    """Listens to the steps of a generation and times them."""

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


def prompt_tokens(input_ids: Any, vocabulary: int) -> list[int]:
    """One prompt's token ids, from a list, an array or a tensor, [T] or [1, T]. Raises `PromptError`."""
    if input_ids is None or isinstance(input_ids, str | bytes | Mapping):
        raise PromptError(
            f"input_ids must be token ids, not {type(input_ids).__name__}: encode the text with the tokenizer first "
            "and give its input_ids"
        )
    try:
        ids = np.asarray(input_ids.detach().cpu().tolist() if hasattr(input_ids, "detach") else input_ids)
    except ValueError as error:
        raise PromptError(
            "input_ids must be one list of token ids: give prompts of several lengths one at a time"
        ) from error
    if ids.ndim == 2 and len(ids) > 1:
        raise PromptError(f"input_ids holds {len(ids)} prompts: call generate once for each of them")
    if ids.dtype == object or ids.dtype.kind in "US":
        raise PromptError("input_ids must be a list of token ids: encode the text with the tokenizer first")
    if ids.ndim > 2 or ids.ndim == 0:
        raise PromptError(f"input_ids must have the shape [T] or [1, T], not {list(ids.shape)}")
    ids = ids.reshape(-1)
    if len(ids) == 0:
        raise PromptError("the prompt is empty: give at least one token, such as the model's beginning-of-text token")
    if not np.issubdtype(ids.dtype, np.integer):
        raise PromptError(f"input_ids must be token ids, not {ids.dtype}: encode the text with the model's tokenizer")
    outside = ids[(ids < 0) | (ids >= vocabulary)]
    if len(outside):
        raise PromptError(
            f"token id {outside[0]} is outside the vocabulary of {vocabulary}: use the tokenizer of this model"
        )
    return ids.tolist()


def _tensor(token_ids: Any) -> Any:
    import torch  # streamers written for transformers expect its tensors; nothing else here needs it

    return torch.tensor(token_ids, dtype=torch.int64)
