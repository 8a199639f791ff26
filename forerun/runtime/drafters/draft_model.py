"""A second compiled model as drafter, with a cache of its own that follows the target's commits.

After Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding" (arXiv 2211.17192), with
trees. The draft may have a drafter of its own: Spector and Ré, "Accelerating LLM Inference with Staged Speculative
Decoding" (arXiv 2308.04623). Or it drafts with layers that share an input: Wu et al., "EasySpec: Layer-Parallel
Speculative Decoding for Efficient Multi-GPU Utilization" (arXiv 2502.02493). What it evaluates so is only a guess:
after each verification the whole draft reads the committed tokens, together with the next root, in one launch.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from forerun.errors import InvalidOptionError, TooLongError
from forerun.runtime.cache import CachedSequence, StepSlots
from forerun.runtime.calibration import trial_steps
from forerun.runtime.draft_rows import DraftRows
from forerun.runtime.drafters.base import Budget, Context, Drafter, Observation, Proposal, RatedTree, only, propose
from forerun.runtime.drafters.growing import Grower, Grown, Launches, Shape
from forerun.runtime.drafters.launching import Launch, Launching, levels, together
from forerun.runtime.drafters.vocabulary import Follower, Vocabulary
from forerun.runtime.engine import Engine
from forerun.runtime.executable import WHOLE, Float32, Int32, Part
from forerun.runtime.rows import prompt_rows
from forerun.runtime.tree import TreeBuilder, root_only
from forerun.runtime.verify import verify

LAST = np.zeros(1, np.int32)
PROBE = 8
"""Tokens of a text after which a draft that rests is asked what it would have guessed; then after twice as many."""
CATCHING_UP = 8
"""The most rows that a first launch evaluates besides the root; those before them are evaluated by prefill steps, which
are not counted against it: the rows of a prompt serve all later launches too."""
HOPED = 0.95, 0.8
"""What a model's own probabilities are worth, and how often one of its candidates is right, before it has shown it: a
model of the target's family agrees on more than half of the tokens, and a good draft must be tried to be known."""
ALONE = Launches(lambda depth: 1.0)
"""A launch that evaluates no rows but its level's, as a launch is judged: catching up spares later ones as much."""


@dataclass(eq=False)
class _Draft:
    """One context in the draft's vocabulary and cache."""

    sequence: CachedSequence
    follower: Follower
    closing: ExitStack
    own: Context  # in the draft's tokens
    probe: int  # the context's length at which to look what the draft would have guessed, if it rests
    wait: int = PROBE  # the tokens from then until the next time
    cached: list[int] = field(default_factory=list[int])  # the tokens in the draft's cache
    proposed: RatedTree | None = None  # in the last iteration, in the draft's tokens
    slots: dict[int, int] = field(default_factory=dict[int, int])  # of its rows that the whole draft has evaluated
    late: bool = False  # `own` lacks what was committed since the last draft


class DraftModel(Drafter):
    """Drafts with another model's engine. The grower's costs are the draft's own.

    inner       drafts for the draft
    part        evaluates the rows below the root (`part_with`); without `inner`, as a draft with a drafter verifies
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        grower: Grower,
        inner: Drafter | None = None,
        part: Part = WHOLE,
    ) -> None:
        self.engine, self.vocabulary, self.grower, self.inner, self.part = engine, vocabulary, grower, inner, part
        # What only a part has evaluated is read again, all of it in the next first launch.
        self.catching_up = CATCHING_UP if part == WHOLE else max(CATCHING_UP, grower.shape.deepest)
        self._drafts: dict[Context, _Draft] = {}

    def begin(self, context: Context) -> None:
        closing = ExitStack()
        sequence = closing.enter_context(self.engine.cache.sequence(0))
        follower = self.vocabulary.follower()
        own, probe = Context(follower.follow(context.tokens)), len(context.tokens) + PROBE
        draft = _Draft(sequence, follower, closing, own, probe)
        self._drafts[context] = draft
        if self.inner is not None:
            closing.callback(self.inner.end, draft.own)
            self.inner.begin(draft.own)

    def propose(self, context: Context, budget: Budget) -> Proposal:
        return only(self.propose_all([context], [budget]))

    def propose_all(self, contexts: Sequence[Context], budgets: Sequence[Budget]) -> list[Proposal | Exception]:
        count, spare = len(contexts), self.engine.cache.spare
        drafts = (
            self._with_room(context, budget, spare[number::count])
            for number, (context, budget) in enumerate(zip(contexts, budgets, strict=True))
        )
        return together(self.engine, list(drafts))

    def _with_room(self, context: Context, budget: Budget, spare: Int32) -> Launching[Proposal]:
        """Proposes only the root if the draft's cache has no room, and gives up its own part of it."""
        try:
            return (yield from self._propose(context, budget, spare))
        except TooLongError:
            self._give_up(self._drafts[context])
            return Proposal(root_only(context.tokens[-1]))

    def _give_up(self, draft: _Draft) -> None:
        draft.proposed, draft.slots, draft.cached = None, {}, []
        self.engine.cache.release(draft.sequence)

    def _propose(self, context: Context, budget: Budget, spare: Int32) -> Launching[Proposal]:
        """`spare`: slots of the draft's cache for rows away from home."""
        draft = self._drafts[context]
        draft.proposed = None
        root = root_only(context.tokens[-1])
        if budget.left <= 1:
            return Proposal(root)
        drafts = budget.depth > 0 and self.grower.drafts(budget, ALONE, min(budget.depth, self.grower.shape.deepest))
        rests = not drafts and (budget.depth == 0 or not self.grower.balance.pays)
        probes = rests and budget.price > 0 and len(context.tokens) >= draft.probe
        unread = max(0, len(context.tokens) - len(draft.cached) - self.catching_up)
        if not (drafts or probes) or not self.grower.reads(unread, budget):
            self.grower.begin(context.tokens[-1], budget, context)
            return Proposal(root)
        if draft.late:
            self._follow(draft, draft.follower.follow(context.tokens))
        limits, own = self.engine.executable, draft.own.tokens
        if probes:
            draft.wait *= 2
            draft.probe = len(context.tokens) + draft.wait
            self.grower.begin(context.tokens[-1], budget, context)
            return Proposal(root, promising=1 < len(own) <= limits.max_length and self._probe(draft, budget))
        shape = self.grower.shape.within(budget.depth, len(spare), limits)
        outgrown = len(own) + shape.deepest > limits.max_length
        if not own or outgrown:
            return Proposal(root)
        with self.engine.serving:
            self._read(draft, budget)
            grown = None if self.inner is None else self._stage(context, draft, budget, shape)
        if grown is None:
            grown = yield from self._grow(context, draft, budget, shape, spare)
        if not grown.evaluated:
            return Proposal(root)
        draft.proposed = grown.proposed
        tree = self.vocabulary.translate(grown.tree, context.tokens, own)
        # A draft may be longer in the target's tokens than in its own.
        return Proposal(tree.select(np.flatnonzero(tree.depth <= budget.depth)).likeliest(budget.rows))

    def observe(self, context: Context, observation: Observation) -> None:
        draft = self._drafts[context]
        if draft.proposed is None:
            self.grower.observe(None, (), len(observation.tokens), context)
            draft.late = True  # until the next draft
            return
        before, after = draft.own.tokens, draft.follower.follow(context.tokens)
        proposed = draft.proposed if after[: len(before)] == before else None
        self.grower.observe(proposed, after[len(before) :], len(observation.tokens), context)
        self._follow(draft, after)

    def rewind(self, context: Context, length: int) -> None:
        draft = self._drafts[context]
        draft.proposed = None
        self._follow(draft, draft.follower.follow(context.tokens[:length]))

    def pause(self, context: Context) -> None:
        if (draft := self._drafts.get(context)) is not None:
            self._give_up(draft)

    def end(self, context: Context) -> None:
        self.grower.forget(context)
        draft = self._drafts.pop(context, None)
        if draft is not None:
            draft.closing.close()

    # --- the draft's cache

    def _follow(self, draft: _Draft, after: list[int]) -> None:
        """Sets the context in the draft's tokens to `after`."""
        with self.engine.serving:
            self._keep_evaluated(draft, after)
        before = draft.own.tokens
        shared = common(before, after)
        if shared < len(before) and self.inner is not None:
            self.inner.rewind(draft.own, shared)
        draft.own.tokens[shared:] = after[shared:]
        draft.late = False

    def _keep_evaluated(self, draft: _Draft, after: list[int]) -> None:
        """Keeps accepted rows of the last tree in the cache, as far as the whole draft has evaluated them; the last
        token of `after` is the next root."""
        self._cut(draft, after)
        at = len(draft.cached)
        if draft.proposed is None or at != len(draft.own.tokens) - 1 or after[at : at + 1] != draft.own.tokens[-1:]:
            return  # the context was retokenized: the tree's rows have other positions
        tree = draft.proposed.tree
        path: list[int] = []
        row: int | None = 0
        while row in draft.slots and len(draft.cached) + len(path) + 1 < len(after):
            path.append(row)
            row = tree.child(row, after[len(draft.cached) + len(path)])
        self.engine.keep([draft.sequence], [np.array([draft.slots[each] for each in path], np.int32)])
        draft.cached.extend(tree.token[path].tolist())

    def _cut(self, draft: _Draft, after: list[int]) -> None:
        """Drops everything from the cache that is not a prefix of `after`."""
        del draft.cached[min(common(draft.cached, after), max(0, len(after) - 1)) :]
        draft.sequence.cut(len(draft.cached))
        self.engine.restore(draft.sequence)
        del draft.cached[draft.sequence.length :]

    def _read(self, draft: _Draft, budget: Budget) -> None:
        """Evaluates the uncached tokens of the context, except the last ones and the root."""
        last = 1 + min(self.catching_up, self.engine.executable.max_rows - 1)
        pending = draft.own.tokens[len(draft.cached) : -last]
        if pending:
            began = self.grower.clock()
            self.engine.prefill(draft.sequence, np.array(pending, np.int32))
            draft.cached.extend(pending)
            self.grower.read(len(pending), self.grower.clock() - began, budget)

    def _catch_up(self, draft: _Draft) -> Launching[tuple[Int32, Float32]]:
        """Evaluates the rest of them, the root last; returns its candidates and logits [1, K]."""
        pending = np.array(draft.own.tokens[len(draft.cached) :], np.int32)
        result = yield Launch(prompt_rows(draft.sequence, pending, LAST + len(pending) - 1))
        draft.sequence.length += len(pending) - 1  # the root's keys and values are where its tree's rows look for them
        draft.cached = draft.own.tokens[:-1]
        return result.candidates, result.candidate_logits

    def _probe(self, draft: _Draft, budget: Budget) -> bool:
        """Reads all but the root, and compares what the draft would have proposed last with what came."""
        with self.engine.serving:
            self._read(draft, budget)
            pending = np.array(draft.own.tokens[len(draft.cached) : -1], np.int32)
            count = min(len(pending), self.engine.executable.max_outputs)
            if not count:
                return False
            self.engine.cache.reserve(draft.sequence, len(draft.own.tokens))
            outputs = np.arange(len(pending) - count, len(pending), dtype=np.int32)
            result = self.engine.run(prompt_rows(draft.sequence, pending, outputs))
            draft.sequence.length += len(pending)
            draft.cached = draft.own.tokens[:-1]
            right = int((result.candidates[:, 0] == draft.own.tokens[-count:]).sum())
        return self.grower.probed(right, count, budget)

    def _launches(self, draft: _Draft) -> Launches:
        return Launches(ALONE.share, behind=len(draft.own.tokens) - len(draft.cached) - 1)

    def _grow(self, context: Context, draft: _Draft, budget: Budget, shape: Shape, spare: Int32) -> Launching[Grown]:
        """Grows a tree level by level, with one launch per level."""
        self.engine.cache.reserve(draft.sequence, len(draft.own.tokens) + shape.deepest)
        below: DraftRows | None = None

        def evaluate(builder: TreeBuilder, rows: Sequence[int]) -> Launching[tuple[Int32, Float32]]:
            nonlocal below
            if below is None:
                candidates, logits = yield from self._catch_up(draft)
                below = DraftRows(draft.sequence, StepSlots(draft.sequence, spare))
                below.batch(builder, rows)  # the root, which lies at home
            else:
                result = yield Launch(below.batch(builder, rows), self.part)
                candidates, logits = result.candidates, result.candidate_logits
            return self.vocabulary.candidates(candidates), logits

        growing = self.grower.growing(draft.own.tokens[-1], budget, self._launches(draft), shape, context)
        grown = yield from levels(growing, evaluate)
        slots = {} if below is None else below.slots
        draft.slots = slots if self.part == WHOLE else {row: slot for row, slot in slots.items() if row == 0}
        return grown

    def _stage(self, context: Context, draft: _Draft, budget: Budget, shape: Shape) -> Grown:
        """Grows the draft's greedy path, proposed by `inner` and verified by the draft, with its rivals as leaves."""
        assert self.inner is not None
        builder = self.grower.begin(draft.own.tokens[-1], budget, context)
        kept, evaluated = len(draft.own.tokens), list[int]()
        row, depth, most, launches = 0, 0, shape.deepest, self._launches(draft)
        while depth < most:
            with self.grower.launch(builder, [row], depth, most, launches, context) as worthwhile:
                if not worthwhile:
                    break
                found = self._inner_step(draft, most - depth, shape)
            for candidates, logits in found:
                evaluated.append(row)
                offered = self.vocabulary.candidates(candidates[None])
                children = self.grower.add_children(builder, [row], depth, shape, offered, logits[None])
                depth += 1
                following = builder.find(row, int(candidates[0])) if children else None
                if following is None:
                    most = depth  # too uncertain to go on from
                    break
                row = following
        self.inner.rewind(draft.own, kept)
        del draft.own.tokens[kept:]
        draft.slots = {}  # what it kept is already in the cache
        return Grown(builder.build_rated(), evaluated)

    def _inner_step(self, draft: _Draft, depth: int, shape: Shape) -> list[tuple[Int32, Float32]]:
        """Runs one step of the draft; its context grows by the accepted tokens. Returns each one's candidates [K]."""
        assert self.inner is not None
        own, engine = draft.own, self.engine
        self.engine.cache.reserve(draft.sequence, len(own.tokens) + depth)
        pending = own.tokens[len(draft.cached) : -1]
        engine.prefill(draft.sequence, np.array(pending, np.int32))
        slots = StepSlots(draft.sequence, engine.cache.spare)
        most = min(shape.beam * depth, engine.executable.max_outputs)
        budget = Budget(most, depth - 1, slots=slots, executable=engine.executable)
        proposal = propose(self.inner, own, budget)
        tree = proposal.tree.likeliest(budget.rows)
        [result] = engine.step([draft.sequence], [tree], proposal.prefix)
        verdict = verify(tree, lambda row: int(result.candidates[row, 0]))
        found = [(result.candidates[row].copy(), result.candidate_logits[row].copy()) for row in verdict.path]
        observation = Observation(tree, verdict.path, verdict.tokens, result.candidates, result.candidate_logits)
        engine.commit([draft.sequence], [result], [verdict.path])
        draft.cached = [*own.tokens, *verdict.tokens[:-1]]
        own.tokens.extend(verdict.tokens)
        self.inner.observe(own, observation)
        return found


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """Returns the length of the longest common prefix of two lists."""
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def part_with(engine: Engine, parallel_layers: int) -> Part:
    """Returns the part of a draft in which groups of `parallel_layers` layers share an input.

    Raises `InvalidOptionError` if the draft has no such layers, or its executable no such part.
    """
    part = Part(parallel=parallel_layers)
    if part == WHOLE:
        return WHOLE
    if not part.inputs([(each.layer, each.kind) for each in engine.executable.branches]):
        raise InvalidOptionError(
            f"no {parallel_layers} consecutive layers of the draft model have attentions in residual branches that "
            "could read one input: use parallel_layers=1"
        )
    with engine.serving, trial_steps(engine, [1], context=1) as [rows]:
        engine.run(rows, part)
    return part
