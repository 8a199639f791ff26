"""The loop of speculative decoding, and what it returns. Plain decoding is the same loop with trees of one row."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError, NotANumberError
from forerun.runtime.cache import StepSlots
from forerun.runtime.drafters.base import Budget, Context, Drafter, Observation, propose
from forerun.runtime.engine import Engine, PromptObserver, TreeResult
from forerun.runtime.executable import Draw, Executable, Float32, Inputs
from forerun.runtime.options import require_flag, require_integer
from forerun.runtime.policy import Policy
from forerun.runtime.sampling import SamplingSettings, choose_token, without
from forerun.runtime.verify import verify


@dataclass(frozen=True)
class Request:
    """What to generate: the text depends on this and the target model only."""

    prompt: list[int]
    max_new_tokens: int
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stop: frozenset[int] = frozenset()  # the text ends with the first of these tokens
    identifier: int = 0  # separates the random numbers of sequences with one seed
    keep_logits: bool = False
    min_new_tokens: int = 0  # this many tokens come before any of `stop`
    allow_nan: bool = False  # NaN counts as the smallest logit; otherwise the text fails at a token's row with NaN
    inputs: Inputs = field(default_factory=dict[str, NDArray[Any]])
    """The model's inputs besides the prompt, by the names of its entry `encode`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_new_tokens", require_integer("max_new_tokens", self.max_new_tokens, least=1))
        object.__setattr__(self, "min_new_tokens", require_integer("min_new_tokens", self.min_new_tokens, least=0))
        object.__setattr__(self, "allow_nan", require_flag("allow_nan", self.allow_nan))
        if not isinstance(cast(object, self.inputs), Mapping):
            raise InvalidOptionError(
                f"inputs must be a dictionary of arrays by name, not {type(self.inputs).__name__}: leave it out for a "
                "model that takes only a prompt"
            )

    def forbidden(self, generated: int) -> frozenset[int]:
        """Returns the tokens that cannot follow `generated` new ones."""
        return self.stop if generated < self.min_new_tokens else frozenset()

    def keep(self, tokens: list[int], generated: int) -> int:
        """Returns how many of a step's tokens belong to the text, after `generated` others."""
        room = self.max_new_tokens - generated
        return next((i + 1 for i, token in enumerate(tokens[:room]) if token in self.stop), min(len(tokens), room))


@dataclass(frozen=True)
class Step:
    """One iteration of the loop. The first one has no rows and says that the prompt is in the cache."""

    tokens: list[int]  # the tokens that this step committed
    rows: int  # the rows that it evaluated
    logits: Float32 | None  # [len(tokens), V] on demand: row i chose token i
    finished: bool


@dataclass(frozen=True)
class Stats:
    """The cost of a generation."""

    steps: int  # evaluations of the target model after the prefill
    rows: int  # rows of these steps
    tokens: int
    prefill_seconds: float
    decode_seconds: float

    @property
    def accepted_length(self) -> float:
        """Tokens committed per step, the bonus token included."""
        return self.tokens / self.steps

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed without the prefill."""
        return self.tokens / self.decode_seconds


@dataclass(frozen=True)
class Generation:
    """A generated text: new tokens only."""

    token_ids: list[int]
    logits: Float32 | None  # [len(token_ids), V], row i chose token i; None unless requested
    text: str | None  # None without a tokenizer
    stats: Stats
    prompt_ids: list[int] = field(default_factory=list[int], repr=False)
    scores: Float32 | None = field(default=None, repr=False)
    """[len(token_ids), V] logits after min_new_tokens, temperature, top_k and top_p; None unless requested."""

    @property
    def sequences(self) -> Any:
        """The prompt and the new tokens as transformers returns them, a tensor [1, T + n] of int64."""
        import torch  # nothing else here needs it

        return torch.tensor([self.prompt_ids + self.token_ids], dtype=torch.int64)

    def has_bits_of(self, other: "Generation") -> bool:
        """Whether two texts have the same token ids and, bit for bit, the same logits; both must have kept them.

        Raises `InvalidOptionError` if one was generated without `return_logits=True`.
        """
        if self.logits is None or other.logits is None:
            raise InvalidOptionError("a text has no logits to compare: generate it with return_logits=True")
        same = np.array_equal(self.logits.view(np.uint32), other.logits.view(np.uint32))
        return self.token_ids == other.token_ids and same


def decode(engine: Engine, request: Request, drafter: Drafter, policy: Policy) -> Generator[Step]:
    """Speculative decoding: propose, step, verify, commit, observe. Closing the iterator frees the cache."""
    most_rows = min(engine.executable.max_rows, engine.executable.max_outputs)
    draw = drawn_by(engine.executable, request)
    generated = 0
    with engine.sequence(len(request.prompt) + request.max_new_tokens - 1) as sequence:
        engine.begin(sequence, request.inputs)
        context = Context(list(request.prompt))
        try:
            drafter.begin(context)
            # All of the prompt but its last token, which is the root of the first tree.
            observer = _prompt_observer(drafter)
            engine.prefill(sequence, np.array(request.prompt[:-1], np.int32), observer=observer)
            yield Step([], 0, None, finished=False)
            finished = False
            while not finished:
                policy.begin()
                slots = StepSlots(sequence, engine.cache.spare)
                depth = min(engine.executable.max_path, request.max_new_tokens - generated - 1)
                rows = min(policy.rows, most_rows)
                costs = policy.price, policy.pace, policy.row, request.max_new_tokens - generated
                budget = Budget(rows, depth if rows > 1 else 0, *costs, slots, engine.executable)
                proposal = propose(drafter, context, budget)
                if proposal.promising:
                    policy.renew()
                [tree] = policy.choose([proposal.tree], proposal.share)
                [result] = engine.step([sequence], [tree], proposal.prefix, [draw])
                verdict = verify(tree, token_choice(result, request, sequence.length, draw))
                kept = verdict.cut(request.keep(verdict.tokens, generated))
                if not request.allow_nan and (broken := result.first_nan(kept.path)) is not None:
                    row, token = broken
                    if row == 0:
                        raise NotANumberError(sequence.length, token)
                    kept = kept.cut(row)  # the row is the next tree's root, as in plain decoding
                engine.commit([sequence], [result], [kept.path])
                logits = np.stack([result.logits(row) for row in kept.path]) if request.keep_logits else None
                context.tokens.extend(kept.tokens)
                generated += len(kept.tokens)
                finished = generated == request.max_new_tokens or kept.tokens[-1] in request.stop
                drafter.observe(
                    context, Observation(tree, kept.path, kept.tokens, result.candidates, result.candidate_logits)
                )
                policy.observe(len(tree), len(kept.tokens), result.seconds)
                yield Step(kept.tokens, len(tree), logits, finished)
        finally:
            drafter.end(context)


def drawn_by(executable: Executable, request: Request) -> Draw | None:
    """Returns how an executable samples a request's tokens; None if it does not: in greedy decoding, or with filters.

    It depends on the executable and the request only, so all strategies sample by the same function.
    """
    sampling = request.sampling
    if not (executable.draws and sampling.do_sample and sampling.top_k is None and sampling.top_p is None):
        return None
    return Draw(sampling.seed, request.identifier, sampling.temperature)


def token_choice(result: TreeResult, request: Request, root: int, draw: Draw | None = None) -> Callable[[int], int]:
    """Returns the choice of the next token by a tree row's logits; the root's position is `root`.

    With a `draw`, the executable has sampled the token. Tokens that are forbidden there are excluded: an allowed token
    that was chosen among more would have been chosen among fewer.
    """
    sampling, depth = request.sampling, result.tree.depth

    def choose(row: int) -> int:
        position = root + int(depth[row]) + 1
        forbidden = request.forbidden(position - len(request.prompt))
        if not sampling.do_sample:
            chosen = result.candidates[row, : len(forbidden) + 1].tolist()
        else:
            chosen = [] if draw is None else [int(result.drawn[row])]
        free = next((token for token in chosen if token >= 0 and token not in forbidden), None)
        if free is not None:
            return free
        return choose_token(without(result.logits(row), forbidden), sampling, request.identifier, position)

    return choose


def _prompt_observer(drafter: Drafter) -> PromptObserver | None:
    if not drafter.wants_prompt_rows:
        return None
    return lambda tokens, result: drafter.observe_prompt(tokens, result.candidates, result.candidate_logits)
