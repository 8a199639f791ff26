"""The loop of speculative decoding, over the sessions that share a step. Plain decoding has trees of one row."""

import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np

from forerun.errors import NotANumberError
from forerun.runtime.cache import StepSlots
from forerun.runtime.choice import NOTHING, Choice, drawn_by
from forerun.runtime.drafters.base import Budget, Drafter, Observation, Proposal, drafter_name, proposals
from forerun.runtime.engine import Chunk, ChunkResult, Engine, TreeResult
from forerun.runtime.executable import Draw
from forerun.runtime.narrowing import narrowed
from forerun.runtime.policy import Policy
from forerun.runtime.recording import Iteration, Listener, Outcome, accepted_by
from forerun.runtime.request import Phases, Request, Step
from forerun.runtime.scheduler import Scheduler, StepPlan
from forerun.runtime.session import Session
from forerun.runtime.tree import Tree, likeliest_of, root_only
from forerun.runtime.verify import Verdict, verify

log = logging.getLogger("forerun.steps")


def decode(engine: Engine, request: Request, drafter: Drafter, policy: Policy) -> Generator[Step]:
    """Decodes one request alone. Closing the iterator frees the cache."""
    session, scheduler = Session(request), Scheduler(engine, drafter)
    try:
        while not session.finished:
            plan = scheduler.schedule([session])
            if plan.is_empty:
                raise scheduler.stuck(session)
            iterate(engine, plan, scheduler, policy)
            yield from session.take()
    finally:
        scheduler.leave(session)


def iterate(
    engine: Engine, plan: StepPlan, scheduler: Scheduler, policy: Policy, listeners: Sequence[Listener] = ()
) -> None:
    """Speculative decoding, for all sessions of a plan: propose, step, verify, commit, observe.

    An error that concerns one session ends that session; an error of the step is raised.
    """
    drafter, watch = scheduler.drafter, Stopwatch(engine.clock)
    plan = scheduler.enter(plan)
    chunks = [
        (session, Chunk(session.cached, session.next_of_prompt(count), drafter.wants_prompt_rows))
        for session, count in plan.chunks
    ]
    members = [
        Member(seat.session, seat.depth, drawn_by(engine.executable, seat.session.request)) for seat in plan.seats
    ]
    members = _surviving(members, Member.reach)
    if members:
        policy.begin()
    members = _propose(engine, drafter, policy, members, plan.rows)
    if any(member.proposal.promising for member in members):
        policy.renew()
    prefix, share = None, 1.0
    if len(members) == 1 and not chunks:  # a step over several sessions cannot be entered late
        prefix, share = members[0].proposal.prefix, members[0].proposal.share
    trees = (
        likeliest_of(policy.choose([member.proposal.tree for member in members], share), plan.rows) if members else []
    )

    drafting = watch.lap()
    for member, tree in zip(members, trees, strict=True):
        member.tree = tree
    members = _prepared(members)
    trees = [member.tree for member in members]
    beside = watch.lap()
    if members or chunks:
        sequences = [member.session.cached for member in members]
        draws = [member.draw for member in members]
        evaluated = engine.evaluate(sequences, trees, [chunk for _, chunk in chunks], prefix, draws)
        for (session, chunk), result in zip(chunks, evaluated.chunks, strict=True):
            scheduler.committed(session)
            if result is not None:
                _tell_of_prompt(drafter, session, chunk, result)
        for member, result in zip(members, evaluated.trees, strict=True):
            member.result = result
        stepping = beside + watch.lap()
        members = _surviving(members, Member.verify)
        verifying = watch.lap()
        engine.commit(
            [member.session.cached for member in members],
            [member.result for member in members],
            [member.verdict.path for member in members],
        )
        phases, name = Phases(drafting, stepping, verifying, watch.lap()), drafter_name(drafter)
        for member in members:
            member.accept(phases, name)
            scheduler.committed(member.session)
        outcomes = tuple(member.outcome(name) for member in members) if listeners else ()
        committed = sum(len(member.verdict.tokens) for member in members)
        members = _observe(drafter, members)
        if members and not chunks:  # a step that also reads prompts says nothing of what rows cost
            tokens = sum(len(member.verdict.tokens) for member in members)
            policy.observe(sum(map(len, trees)), tokens, beside + evaluated.seconds)
        read = sum(len(chunk.tokens) for _, chunk in chunks)
        if log.isEnabledFor(logging.INFO):
            told = len(trees), sum(map(len, trees)), read, committed, phases
            log.info("%d trees of %d rows, %d rows of prompts: %d tokens; %s", *told)
        for listener in listeners:
            listener(Iteration(watch.began, engine.clock(), phases, read, outcomes))
    for session in plan.sessions:
        if session.finished:
            scheduler.leave(session)


@dataclass(eq=False)
class Member:
    """A session's part in an iteration."""

    session: Session
    depth: int  # of the deepest row that it has room for
    draw: Draw | None  # how the executable samples its tokens
    budget: Budget = field(init=False)
    proposal: Proposal = field(init=False)
    tree: Tree = field(init=False)  # what is evaluated of it
    result: TreeResult = field(init=False)
    choice: Choice = field(init=False)
    verdict: Verdict = field(init=False)
    ended: bool = field(init=False)  # whether a hook ends the text with the verdict's last token
    error: Exception | None = field(init=False)  # what comes after it

    def reach(self) -> None:
        """Lets the hooks know all tokens."""
        if self.session.hooks is not None:
            self.session.hooks.reach(self.session.context.tokens)

    def narrow(self) -> None:
        """Leaves out drafts that no hook can let through."""
        if self.session.hooks is not None:
            self.proposal = narrowed(self.proposal, self.session.hooks, self.budget)

    def prepare(self) -> None:
        """Lets the hooks know the tree."""
        if self.session.hooks is not None:
            self.session.hooks.enter(self.tree)

    def verify(self) -> None:
        session, tree, request = self.session, self.result.tree, self.session.request
        root = session.cached.length
        self.choice = Choice(self.result, request, root, self.draw, session.hooks)
        verdict = verify(tree, self.choice, request.stop)
        if verdict.tokens[-1] == NOTHING:
            verdict = verdict.cut(len(verdict.tokens) - 1)
        kept = verdict.cut(request.keep(verdict.tokens, session.generated))
        last = None if session.hooks is None else session.hooks.last(kept.tokens)
        kept = kept.cut(last or len(kept.tokens))
        if not request.allow_nan and (broken := self.result.first_nan(kept.path)) is not None:
            row, token = broken
            if row == 0:
                raise NotANumberError(root, token)
            kept = kept.cut(row)  # the row is the next tree's root, as in plain decoding
        self.verdict, self.ended = kept, last == len(kept.tokens)
        self.error = self.choice.error if len(kept.tokens) == len(verdict.tokens) else None

    def accept(self, phases: Phases, drafter: str) -> None:
        request, path, tokens = self.session.request, self.verdict.path, self.verdict.tokens
        logits = np.stack([self.result.logits(row) for row in path]) if request.keep_logits else None
        scores = np.stack([self.choice.scores(row) for row in path]) if request.keep_scores else None
        proposers = accepted_by(self.proposal, drafter, tokens[:-1])
        self.session.accept(tokens, len(self.result.tree), logits, phases, proposers, scores, self.ended)
        if self.error is not None:
            self.session.fail(self.error)

    def outcome(self, drafter: str) -> Outcome:
        verdict = self.verdict
        return Outcome(self.session, drafter, self.proposal, self.result.tree, verdict.path, verdict.tokens)

    @property
    def observation(self) -> Observation:
        result, verdict = self.result, self.verdict
        return Observation(result.tree, verdict.path, verdict.tokens, result.candidates, result.candidate_logits)


class Stopwatch:
    """Divides the time since it `began`, by a clock, into laps."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.began = self._last = clock()

    def lap(self) -> float:
        """Returns the seconds since the last lap ended."""
        last, self._last = self._last, self._clock()
        return self._last - last


def _propose(engine: Engine, drafter: Drafter, policy: Policy, members: list[Member], most_rows: int) -> list[Member]:
    """Lets the drafter propose for all members. Returns those that have a proposal; an error ends the session.

    The time of a step is shared: a second costs each session its share of the tokens that all of them would yield.
    """
    count, budgets = len(members), list[Budget]()
    if drafter.may_rest and (policy.rows == 1 or not any(member.depth for member in members)):
        for member in members:
            member.proposal = Proposal(root_only(member.session.context.tokens[-1]))
        return members
    for number, member in enumerate(members):
        rows = min(policy.rows, most_rows - count + 1)
        costs = policy.price, policy.pace, policy.row * count, member.session.left
        slots = StepSlots(member.session.cached, engine.cache.spare[number::count])
        budgets.append(Budget(rows, member.depth if rows > 1 else 0, *costs, slots, engine.executable, count == 1))
    found = proposals(drafter, [member.session.context for member in members], budgets)
    proposing: list[Member] = []
    for member, proposal, budget in zip(members, found, budgets, strict=True):
        if isinstance(proposal, Exception):
            member.session.fail(proposal)
        else:
            member.proposal = proposal
            member.budget = budget
            proposing.append(member)
    return _surviving(proposing, Member.narrow)


def _prepared(members: list[Member]) -> list[Member]:
    """Lets the hooks evaluate what they need beside the step. Returns the members for which none raises an error."""
    members = _surviving(members, Member.prepare)
    hooks = {id(hook): hook for member in members for hook in member.session.request.hooks}
    for number, hook in hooks.items():
        try:
            hook.evaluate()
        except Exception as error:
            concerned = [each for each in members if number in map(id, each.session.request.hooks)]
            members = [each for each in members if each not in concerned]
            for member in concerned:
                member.session.fail(error)
    return members


def _tell_of_prompt(drafter: Drafter, session: Session, chunk: Chunk, result: ChunkResult) -> None:
    try:
        drafter.observe_prompt(chunk.tokens, result.candidates, result.candidate_logits)
    except Exception as error:
        session.fail(error)


def _observe(drafter: Drafter, members: list[Member]) -> list[Member]:
    """Tells the drafter what came of its proposals. Returns the members for which it raises no error."""
    errors = drafter.observe_all(
        [member.session.context for member in members], [member.observation for member in members]
    )
    for member, error in zip(members, errors, strict=True):
        if error is not None:
            member.session.fail(error)
    return [member for member, error in zip(members, errors, strict=True) if error is None]


def _surviving(members: list[Member], work: Callable[[Member], None]) -> list[Member]:
    """Returns the members for which `work` raises no error; an error ends the session."""
    surviving: list[Member] = []
    for member in members:
        try:
            work(member)
            surviving.append(member)
        except Exception as error:
            member.session.fail(error)
    return surviving
