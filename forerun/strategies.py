"""The named strategies. A strategy is a schedule: it decides how many steps a text takes, never the text itself.

Drafters and policies are described here by value; `build` builds them for one compiled target.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, ClassVar, Protocol

from forerun.errors import InvalidOptionError, UnknownStrategyError
from forerun.progress import Progress, open_progress
from forerun.runtime import policy as policies
from forerun.runtime.calibration import CostModel, calibrate
from forerun.runtime.device_loop import LARGEST, PLACES, Drafting, Loops, OnDevice, fills_inputs
from forerun.runtime.drafters import base, draft_model, merged, prompt_lookup, token_recycling
from forerun.runtime.drafters import vocabulary as vocabularies
from forerun.runtime.drafters.growing import Always, Confidence, Grower, Shape
from forerun.runtime.drafters.launch_cost import LaunchCost
from forerun.runtime.drafters.parts.clasp import Clasp
from forerun.runtime.drafters.parts.dynamic_exit import DynamicExit
from forerun.runtime.drafters.parts.early_exit import ExitAt
from forerun.runtime.drafters.parts.swift import Swift
from forerun.runtime.drafters.parts.uniform import Uniform
from forerun.runtime.drafters.self_draft import PartMethod, SelfDraft
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Executable
from forerun.runtime.fields import (
    DTYPES,
    Checked,
    checked,
    flag,
    has,
    instance,
    integer,
    model_or_path,
    one_of,
    several,
)
from forerun.runtime.model import CompiledModel
from forerun.runtime.round_size import MostTokens, RoundSize, SameSize


@dataclass(frozen=True)
class Target:
    """The compiled target for which a strategy is built."""

    engine: Engine
    cost: CostModel | None  # t(n) on this machine, if the strategy needs it
    tokenizer: Any  # None if none is known
    progress: Progress = field(default_factory=open_progress)
    threads: int | None = None  # of a step, if it was asked for

    @property
    def executable(self) -> Executable:
        return self.engine.executable

    @property
    def most_rows(self) -> int:
        """The most rows of an iteration on the device."""
        return min(LARGEST, self.executable.max_rows, self.executable.max_outputs)


class DrafterSpec(Protocol):
    """A drafter described by value."""

    def build(self, target: Target) -> base.Drafter: ...


class PolicySpec(Protocol):
    """A tree policy described by value; `needs_cost` requests a calibration of t(n) on this machine."""

    needs_cost: ClassVar[bool]

    def build(self, target: Target) -> policies.Policy: ...

    def round_size(self, target: Target) -> RoundSize | None:
        """Returns the policy for iterations on the device; None if only the host can decide."""
        ...


class PartSpec(Protocol):
    """A method that chooses the part of the target that drafts, described by value."""

    def build(self, engine: Engine, cost: CostModel | None) -> PartMethod: ...


DRAFT_SIZES = (1, 2, 3, 4, 8, 16)
"""The sizes of a draft model's steps that are timed: levels of a tree, and tokens that it has not read yet."""
DRAFTER = has("a drafter, such as PromptLookup()", "build", 1, without=("needs_cost",))
DRAFTERS = several(DRAFTER, "drafters")
POLICY = has("a tree policy, such as Fixed(rows=16)", "build", 1, "needs_cost")
METHOD = has("a method that chooses a part of the target model, such as Swift()", "build", 2)
CONFIDENCE = has("a stop, such as LikeliestAbove(0.6)", "__call__", 1)


@dataclass(frozen=True)
class PromptLookup(Checked):
    """Proposes continuations of earlier occurrences of the context's last tokens (up to `longest` of them match)."""

    longest: int = integer(4, least=1)
    places: int = integer(8, least=1)

    def build(self, target: Target) -> base.Drafter:
        return prompt_lookup.PromptLookup(self.longest, self.places)


@dataclass(frozen=True)
class TokenRecycling(Checked):
    """Builds trees from the candidates that the target itself gave after each token so far (arXiv 2408.08696)."""

    deepest: int = integer(8, least=1)
    prompt_rows: bool = flag(False)
    """Whether the prompt's rows give candidates too; their logits must then be evaluated."""

    def build(self, target: Target) -> base.Drafter:
        limits = target.executable
        return token_recycling.TokenRecycling(
            limits.vocabulary, limits.candidates, self.deepest, wants_prompt_rows=self.prompt_rows
        )


@dataclass(frozen=True)
class SkipLayers(Checked):
    """The target drafts for itself with some of its residual branches left out (arXiv 2309.08168).

    `method` chooses them: `Uniform`, `Swift`, `Clasp`, `FeedForwardOnly`, `DecayedDepth`, `SkipDecode`.
    """

    method: PartSpec = checked(METHOD, Uniform())
    shape: Shape = instance(Shape, Shape())
    confidence: Confidence = checked(CONFIDENCE, Always())

    def build(self, target: Target) -> base.Drafter:
        grower = Grower(self.shape, LaunchCost(target.cost), plain_seconds(target), self.confidence)
        return SelfDraft(target.engine, self.method.build(target.engine, target.cost), grower)


@dataclass(frozen=True)
class EarlyExit(Checked):
    """The target's first layers draft, with its own norm and head; verification runs the others (arXiv 2404.16710).

    `layer`: how many of them; None lets DEL choose in each iteration (arXiv 2504.05598).
    """

    layer: int | None = integer(None, least=1, optional=True)
    shape: Shape = instance(Shape, Shape())
    confidence: Confidence = checked(CONFIDENCE, Always())

    @property
    def method(self) -> PartSpec:
        return DynamicExit() if self.layer is None else ExitAt(self.layer)

    def build(self, target: Target) -> base.Drafter:
        return SkipLayers(self.method, self.shape, self.confidence).build(target)


@dataclass(frozen=True)
class DraftModel(Checked):
    """Another model drafts, with its own cache (arXiv 2211.17192).

    source      a source that `forerun.compile` takes, or a model that it returned
    vocabulary  how the draft's vocabulary meets the target's: "same"; "intersection", the tokens that both have;
                "text", the draft's text in the target's tokens (arXiv 2502.05202); "auto", the closest available
    drafter     drafts for the draft (arXiv 2308.04623)
    tokens      the most tokens that the draft computes logits for, the first of its vocabulary: the most frequent ones
                where a tokenizer numbers its merges in order (FR-Spec, arXiv 2502.14856, counts them); 0 for all. A
                model that is already compiled keeps its whole head
    threads     how many threads share a step of the draft; by default those of the target
    parallel_layers     the consecutive layers whose attentions read one input (arXiv 2502.02493); not with a `drafter`
    dtype       the draft's weight dtype; "auto" is the format of its file: "native" for a GGUF file, where the draft's
                back end has it, otherwise "float32"

    Two models that draft for each other must not generate at the same time: each waits for the other.
    """

    source: Any = checked(model_or_path)
    vocabulary: str = checked(vocabularies.require_way, "auto")
    drafter: DrafterSpec | None = checked(lambda name, value: None if value is None else DRAFTER(name, value), None)
    dtype: str = one_of(("auto", *DTYPES), "auto")
    tokens: int = integer(49_152, least=0)
    threads: int | None = integer(None, least=1, optional=True)
    shape: Shape = instance(Shape, Shape())
    confidence: Confidence = checked(CONFIDENCE, Always())
    parallel_layers: int = integer(1, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parallel_layers > 1 and self.drafter is not None:
            raise InvalidOptionError("a draft verifies its drafter's rows as a whole: give drafter or parallel_layers")

    def build(self, target: Target) -> base.Drafter:
        draft = self._draft(target)
        part = draft_model.part_with(draft.engine, self.parallel_layers)
        read = draft.executable.vocabulary  # of the tokens that the draft reads; those that it proposes may be fewer
        if draft.tokenizer is not None:
            read = max(read, 1 + max(draft.tokenizer.get_vocab().values()))
        sizes = target.executable.vocabulary, read
        met = vocabularies.vocabulary(self.vocabulary, target.tokenizer, draft.tokenizer, sizes)
        inner = None if self.drafter is None else self.drafter.build(draft)
        cost = None
        if target.cost is not None:
            with target.progress.stage("calibrate the draft"), draft.engine.serving:
                cost = calibrate(draft.engine, seconds=0.3, sizes=DRAFT_SIZES)
        grower = Grower(self.shape, LaunchCost(cost), plain_seconds(target), self.confidence, *draft_model.HOPED)
        return draft_model.DraftModel(draft.engine, met, grower, inner, part)

    def _draft(self, target: Target) -> Target:
        if isinstance(self.source, CompiledModel):
            engine = Engine(self.source.executable)
            engine.serving = self.source.engine.serving  # one executable's steps share buffers
            return Target(engine, None, self.source.tokenizer, target.progress)
        # These import torch and transformers, which a strategy by value does not need.
        from forerun.build import build, own_dtype, warn_of_length
        from forerun.codegen.backends import BACKENDS
        from forerun.compile_options import resolve_target

        length = target.executable.max_length
        dtype = own_dtype(self.source) if self.dtype == "auto" else self.dtype
        threads = self.threads or target.threads
        back_end = resolve_target("auto", dtype)
        own = threads if BACKENDS[back_end].threads else None
        built = build(self.source, dtype, back_end, length, None, target.progress, threads=own, tokens=self.tokens)
        warn_of_length(built.capped, "in the draft model, ")
        return Target(Engine(built.executable), None, built.tokenizer, target.progress, threads)


def draft_sources(drafters: Iterable[DrafterSpec]) -> Iterable[Any]:
    """Yields the sources of the models that draft, including models that draft for them."""
    for each in drafters:
        if isinstance(each, DraftModel):
            yield each.source
            yield from draft_sources(() if each.drafter is None else (each.drafter,))


def plain_seconds(target: Target) -> float:
    """Returns the seconds of the target's step of one row; 0 where time does not count."""
    return 0.0 if target.cost is None else target.cost.seconds(1)


@dataclass(frozen=True)
class CostAware(Checked):
    """Adds rows as long as they pay in tokens per second, by the measured t(n); at most `rows` per step."""

    needs_cost: ClassVar[bool] = True

    rows: int = integer(32, least=1)

    def build(self, target: Target) -> policies.Policy:
        if target.cost is None:
            raise InvalidOptionError("CostAware needs a calibration; compile with one, or use Fixed(rows).")
        return policies.CostAware(target.cost, min(self.rows, target.executable.max_rows))

    def round_size(self, target: Target) -> RoundSize | None:
        assert target.cost is not None
        most = min(self.rows, target.most_rows)
        return MostTokens(target.cost, tuple(sorted({most, *(1 << power for power in range(most.bit_length()))})))


@dataclass(frozen=True)
class Fixed(Checked):
    """Takes the likeliest `rows` rows of every proposal."""

    needs_cost: ClassVar[bool] = False

    rows: int = integer(16, least=1)

    def build(self, target: Target) -> policies.Policy:
        return policies.Fixed(min(self.rows, target.executable.max_rows))

    def round_size(self, target: Target) -> RoundSize | None:
        return SameSize(self.rows) if self.rows <= target.most_rows else None


@dataclass(frozen=True)
class Strategy(Checked):
    """A schedule: drafters whose proposals are merged into one tree, and the policy that sizes it.

    `level` is the exactness contract: "bits" promises the token ids and the logits of `autoregressive`, bit for bit.
    """

    level: ClassVar[str] = "bits"

    drafters: Sequence[DrafterSpec] = checked(DRAFTERS, ())
    policy: PolicySpec = checked(POLICY, Fixed(1))

    @property
    def needs_cost(self) -> bool:
        return bool(self.drafters) and self.policy.needs_cost

    def build(self, target: Target) -> tuple[base.Drafter | None, policies.Policy]:
        """Returns the drafter (None for plain decoding) and the policy for one compiled target."""
        built = [each.build(target) for each in self.drafters]
        drafter = None if not built else built[0] if len(built) == 1 else merged.Merged(built)
        return drafter, self.policy.build(target)

    def on_device(self, target: Target) -> OnDevice | None:
        """Returns the same for the device, if the executable can loop there and has these drafters; else None."""
        executable = target.executable
        if not isinstance(executable, Loops) or not executable.candidates or type(self).build is not Strategy.build:
            return None
        if not fills_inputs(executable):
            return None  # states per row and per request need inputs that the loop does not fill
        if not executable.draws:
            return None  # the loop detects NaN only through sampled tokens
        drafting = drafting_on_device(self.drafters)
        of_policy = getattr(self.policy, "round_size", None)  # a user's own policy may support only the host
        if drafting is None or of_policy is None:
            return None
        size: RoundSize | None = of_policy(target) if self.drafters else SameSize(1)
        if size is None:
            return None
        found = OnDevice(executable.loop(target.engine.state, drafting, max(size.sizes)), size)
        with target.progress.stage("the loop on the device"), target.engine.serving:
            found.prepare(target.engine)
        return found


def drafting_on_device(drafters: Sequence[DrafterSpec]) -> Drafting | None:
    """Returns the drafters for the device: at most one prompt lookup and one token recycling; else None.

    The device finds occurrences by their longest match, so `longest`, which limits the host's index, is not used.
    """
    lookups = [each for each in drafters if type(each) is PromptLookup and each.places <= PLACES]
    recycling = [each for each in drafters if type(each) is TokenRecycling and not each.prompt_rows]
    if len(lookups) + len(recycling) != len(drafters) or max(len(lookups), len(recycling)) > 1:
        return None
    return Drafting(sum(each.places for each in lookups), sum(each.deepest for each in recycling))


@dataclass(frozen=True)
class Autoregressive(Strategy):
    """Plain decoding: one row per step."""


@dataclass(frozen=True)
class TreeSpec(Strategy):
    """Trees from training-free drafters, sized by measured cost and verified by position-aligned tree attention."""

    drafters: Sequence[DrafterSpec] = checked(DRAFTERS, (PromptLookup(), TokenRecycling()))
    policy: PolicySpec = checked(POLICY, CostAware())


STRATEGIES: dict[str, Strategy] = {
    "autoregressive": Autoregressive(),
    "tree_spec": TreeSpec(),
    "prompt_lookup": TreeSpec(drafters=(PromptLookup(),)),
    "token_recycling": TreeSpec(drafters=(TokenRecycling(),)),
    "layer_skip": TreeSpec(drafters=(SkipLayers(),)),
    "swift": TreeSpec(drafters=(SkipLayers(Swift()),)),
    "clasp": TreeSpec(drafters=(SkipLayers(Clasp()),)),
    "early_exit": TreeSpec(drafters=(EarlyExit(),)),
}


DRAFT_MODEL = "draft_model"
"""The strategy whose name includes the draft's path: "draft_model:PATH"."""


DESCRIPTIONS: dict[str, str] = {
    "autoregressive": "plain decoding, one row per step",
    "tree_spec": "trees from prompt_lookup and token_recycling, sized by measured cost",
    "prompt_lookup": "continuations of earlier occurrences of the last tokens",
    "token_recycling": "the candidates that the model gave after each token so far",
    "layer_skip": "the model drafts with layers left out at even intervals",
    "swift": "the same, with layers searched for while decoding (SWIFT)",
    "clasp": "the same, with layers chosen anew in every step (CLaSp)",
    "early_exit": "the model's first layers draft",
    f"{DRAFT_MODEL}:PATH": "tree_spec with the model at PATH as a third drafter",
}
"""A line for each named strategy."""


def strategy_names() -> list[str]:
    """Returns the strategy names that `compile` takes."""
    return [*STRATEGIES, f"{DRAFT_MODEL}:PATH"]


def resolve_strategy(strategy: object) -> Strategy:
    """Returns a strategy given by name or as it is. Raises UnknownStrategyError with the nearest name otherwise."""
    if isinstance(strategy, Strategy):
        return strategy
    if isinstance(strategy, str) and strategy in STRATEGIES:
        return STRATEGIES[strategy]
    if isinstance(strategy, str) and strategy.partition(":")[0] == DRAFT_MODEL:
        path = strategy.partition(":")[2]
        if not path:
            raise UnknownStrategyError(
                f"{DRAFT_MODEL} needs a model that drafts: write {DRAFT_MODEL}:PATH, or "
                "TreeSpec(drafters=(DraftModel(PATH),))."
            )
        return TreeSpec(drafters=(*TreeSpec().drafters, DraftModel(path)))
    near = get_close_matches(str(strategy), STRATEGIES, n=1)
    hint = f"did you mean {near[0]!r}? The strategies are" if near else "use one of"
    raise UnknownStrategyError(f"There is no strategy {strategy!r}; {hint} {', '.join(strategy_names())}.")
