"""What a request asks for, and what decoding it gives: plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Float32, Inputs
from forerun.runtime.hooks.base import Hook
from forerun.runtime.options import require_flag, require_integer
from forerun.runtime.sampling import SamplingSettings


@dataclass(frozen=True)
class Request:
    """What to generate: the text depends on this and the target model only."""

    prompt: list[int]
    max_new_tokens: int
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stop: frozenset[int] = frozenset()  # the text ends with the first of these tokens
    identifier: int = 0  # separates the random numbers of sequences with one seed
    keep_logits: bool = False
    keep_scores: bool = False
    min_new_tokens: int = 0  # this many tokens come before any of `stop`
    allow_nan: bool = False  # NaN counts as the smallest logit; otherwise the text fails at a token's row with NaN
    inputs: Inputs = field(default_factory=dict[str, NDArray[Any]])
    """The model's inputs besides the prompt, by the names of its entry `encode`."""
    hooks: tuple[Hook, ...] = ()  # change the scores of each token, one after another
    renormalize: bool = False  # whether scores that are kept are log-probabilities
    begins: int | None = None  # where new tokens begin for the hooks, if the prompt ends with some

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_new_tokens", require_integer("max_new_tokens", self.max_new_tokens, least=1))
        object.__setattr__(self, "min_new_tokens", require_integer("min_new_tokens", self.min_new_tokens, least=0))
        object.__setattr__(self, "allow_nan", require_flag("allow_nan", self.allow_nan))
        if not isinstance(cast(object, self.inputs), Mapping):
            raise InvalidOptionError(
                f"inputs must be a dictionary of arrays by name, not {type(self.inputs).__name__}: leave it out for a "
                "model that takes only a prompt"
            )

    @property
    def begin(self) -> int:
        """The number of tokens that hooks take as the prompt."""
        return len(self.prompt) if self.begins is None else self.begins

    def after(self, tokens: Sequence[int], max_new_tokens: int | None = None) -> "Request":
        """Returns the request for the rest of a text that goes on with these tokens, by default as long in all."""
        count = len(tokens)
        return replace(
            self,
            prompt=[*self.prompt, *tokens],
            max_new_tokens=self.max_new_tokens - count if max_new_tokens is None else max_new_tokens,
            min_new_tokens=max(0, self.min_new_tokens - count),
            begins=self.begin,
        )

    def forbidden(self, generated: int) -> frozenset[int]:
        """Returns the tokens that cannot follow `generated` new ones."""
        return self.stop if generated < self.min_new_tokens else frozenset()

    def keep(self, tokens: list[int], generated: int) -> int:
        """Returns how many of a step's tokens belong to the text, after `generated` others."""
        room = self.max_new_tokens - generated
        return next((i + 1 for i, token in enumerate(tokens[:room]) if token in self.stop), min(len(tokens), room))


TARGET = "target"
"""Who gives the last token of every step: the target itself."""


@dataclass(frozen=True)
class Phases:
    """The seconds of an iteration, or of several, by what was done. What drafters learn from it is not among them."""

    draft: float = 0.0  # proposing, and choosing which rows to evaluate
    step: float = 0.0  # evaluating them
    verify: float = 0.0
    commit: float = 0.0

    def __add__(self, other: "Phases") -> "Phases":
        return Phases(
            self.draft + other.draft, self.step + other.step, self.verify + other.verify, self.commit + other.commit
        )

    def __str__(self) -> str:
        times = {"draft": self.draft, "step": self.step, "verify": self.verify, "commit": self.commit}
        return ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in times.items())

    @property
    def total(self) -> float:
        return self.draft + self.step + self.verify + self.commit


@dataclass(frozen=True)
class Step:
    """One iteration of the loop. The first one has no rows and says that the prompt is in the cache."""

    tokens: list[int]  # the tokens that this step committed
    rows: int  # the rows that it evaluated
    logits: Float32 | None  # [len(tokens), V] on demand: row i chose token i
    finished: bool
    phases: Phases | None = None  # None where the device decodes by itself
    proposers: tuple[str, ...] = ()  # who proposed each token before the last; none where the device drafts
    scores: Float32 | None = None  # [len(tokens), V] on demand: by which each token was chosen
    ended: bool = False  # whether a hook ends the text here

    def cut(self, count: int) -> "Step":
        """Returns the step with its first `count` tokens only, which are the text's last."""
        logits = None if self.logits is None else self.logits[:count]
        scores = None if self.scores is None else self.scores[:count]
        return replace(self, tokens=self.tokens[:count], logits=logits, scores=scores, finished=True)


@dataclass(frozen=True)
class Stats:
    """The cost of a generation."""

    steps: int  # evaluations of the target model after the prefill
    rows: int  # rows of these steps
    tokens: int
    prefill_seconds: float
    decode_seconds: float
    phases: Phases | None = None
    """Where the time of its iterations went, those of other sessions in them included; None if the device decoded."""
    lengths: Mapping[int, int] = field(default_factory=dict[int, int])
    """How many steps committed so many tokens, by accepted length."""
    tokens_by: Mapping[str, int] = field(default_factory=dict[str, int])
    """The tokens of each drafter, or of several that proposed the same; those of the target itself are under "target".

    Without phases, all are: who drafted on the device is not known.
    """

    @property
    def accepted_length(self) -> float:
        """Tokens committed per step, the bonus token included."""
        return self.tokens / self.steps if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed without the prefill."""
        return self.tokens / self.decode_seconds if self.tokens else 0.0


@dataclass(frozen=True)
class Generation:
    """A generated text: new tokens only."""

    token_ids: list[int]
    logits: Float32 | None  # [len(token_ids), V], row i chose token i; None unless requested
    text: str | None  # None without a tokenizer
    stats: Stats
    prompt_ids: list[int] = field(default_factory=list[int], repr=False)
    scores: Float32 | None = field(default=None, repr=False)
    """[len(token_ids), V] logits after hooks, min_new_tokens, temperature and filters; None unless requested."""
    finish_reason: str | None = None
    """"stop" if the text ended by itself, by an end token, a stop string, a criterion or a grammar, "length" if it was
    as long as allowed; None if it was cancelled."""
    score: float | None = None
    """By which a search ranked the text; None for texts that are not searched."""

    @property
    def sequences(self) -> Any:
        """The prompt and the new tokens as transformers returns them, a tensor [1, T + n] of int64."""
        import torch  # nothing else here needs it

        return torch.tensor([self.prompt_ids + self.token_ids], dtype=torch.int64)

    @property
    def sequences_scores(self) -> Any:
        """The score as transformers returns it, a tensor [1] of float32; None for texts that are not searched."""
        import torch

        return None if self.score is None else torch.tensor([self.score], dtype=torch.float32)

    def has_bits_of(self, other: "Generation") -> bool:
        """Whether two texts have the same token ids and, bit for bit, the same logits; both must have kept them.

        Raises `InvalidOptionError` if one was generated without `return_logits=True`.
        """
        if self.logits is None or other.logits is None:
            raise InvalidOptionError("a text has no logits to compare: generate it with return_logits=True")
        same = np.array_equal(self.logits.view(np.uint32), other.logits.view(np.uint32))
        return self.token_ids == other.token_ids and same
