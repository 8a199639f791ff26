"""Decides which sessions take part in a step, and gives them their places in the cache."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from forerun.errors import TooLongError
from forerun.runtime.cache import CachedSequence
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.engine import Engine
from forerun.runtime.session import Session

BESIDE = 64
"""The most prompt rows of a step that also decodes: about as many as make reading a prompt efficient."""


@dataclass(frozen=True)
class Seat:
    """A session that decodes in a step."""

    session: Session
    depth: int  # of the deepest row that there is room for


@dataclass(frozen=True)
class StepPlan:
    """Who takes part in a step."""

    preempted: tuple[Session, ...]  # give up their places in the cache, and wait
    admitted: tuple[Session, ...]  # are given one
    chunks: tuple[tuple[Session, int], ...]  # read so many tokens of their prompts
    seats: tuple[Seat, ...]
    rows: int  # the most rows of all trees together

    @property
    def sessions(self) -> list[Session]:
        """Those that take part."""
        return [*(seat.session for seat in self.seats), *(session for session, _ in self.chunks)]

    @property
    def is_empty(self) -> bool:
        """Whether nothing can go on."""
        return not (self.preempted or self.admitted or self.chunks or self.seats)


class Scheduler:
    """Plans steps over the sessions of one drafter. `schedule` only decides; a plan is carried out by `enter`.

    The room in the cache goes to older sessions first: a session that has none left takes back the blocks of the
    youngest one. Speculation takes only room that no session waits for.
    """

    def __init__(self, engine: Engine, drafter: Drafter) -> None:
        self.engine, self.drafter = engine, drafter
        self.iteration = 0

    # --- deciding

    def schedule(self, sessions: Sequence[Session]) -> StepPlan:
        """Returns the plan of the next step over these sessions, the oldest first."""
        limits, cache = self.engine.executable, self.engine.cache
        for session in sessions:
            if session.sequence is not None:
                self.engine.restore(session.sequence)  # it reads again what has given way
        active = [session for session in sessions if not session.resting]
        waiting = [session for session in active if session.sequence is None and not session.finished]
        placed = [session for session in active if session.sequence is not None]
        resting = [session for session in sessions if session.resting and session.sequence is not None]
        present, preempted, free = self._with_room(placed, resting, bool(waiting))
        reading = [session for session in present if session.reads]
        decoding = sorted((each for each in present if not each.reads), key=lambda session: session.last)
        room = self._room_beside(min(len(decoding), limits.max_outputs))

        chunks: list[tuple[Session, int]] = []
        for session in reading:
            if count := min(room, len(session.context.tokens) - 1 - session.cached.length):
                chunks.append((session, count))
                room -= count
        admitted: list[Session] = []
        for session in () if preempted else waiting:
            known = session.context.tokens[:-1]
            if (known and not room) or len(admitted) == cache.free_requests:
                break
            needed = cache.needed(known, len(known) + 1)
            others = len(present) + len(admitted)  # each should be able to go on for a while
            if needed + others > free:
                break
            if self._awaits(known, [*reading, *admitted]):
                continue
            admitted.append(session)
            free -= needed
            if count := min(room, len(known) - len(cache.matching(known)) * cache.block):
                chunks.append((session, count))
                room -= count

        read = sum(count for _, count in chunks)
        observed = read if self.drafter.wants_prompt_rows else 0
        rows = min(limits.max_outputs - observed, limits.max_rows - read)
        if (records := self.engine.records) is not None:
            # Each sequence needs its parent's record and two of its prompt's; each row needs its own.
            rows = max(1, min(rows, records.records - 3 * (len(present) + len(admitted))))
        seats: list[Seat] = []
        for session in decoding[:rows]:
            depth = min(limits.max_path, session.left - 1)
            has = len(session.cached.blocks) * cache.block - session.cached.length - 1
            has += cache.block if has < 0 else 0  # the next row's block, which is counted already
            given = 0 if waiting else min(free, max(0, -(-(depth - has) // cache.block)))
            free -= given
            seats.append(Seat(session, max(0, min(depth, has + given * cache.block))))
        return StepPlan(tuple(preempted), tuple(admitted), tuple(chunks), tuple(seats), rows)

    def _room_beside(self, decoding: int) -> int:
        """Returns how many prompt rows a step may have beside so many sessions that decode."""
        limits = self.engine.executable
        room = min(BESIDE, limits.max_rows - min(decoding, limits.max_rows - 1)) if decoding else limits.max_rows
        return min(room, max(1, limits.max_outputs - decoding)) if self.drafter.wants_prompt_rows else room

    def _with_room(
        self, present: list[Session], resting: list[Session], wanted: bool
    ) -> tuple[list[Session], list[Session], int]:
        """Returns the sessions that have room for their next row, those that give up theirs for it, and free blocks.

        Those that rest give up theirs first; and also if others wait (`wanted`) while nobody can go on.
        """
        cache = self.engine.cache
        if wanted and not present and resting:
            return [], resting, cache.free
        free, preempted, kept = cache.free, list[Session](), list(present)
        for session in present:
            if session in preempted:
                continue
            lacking = cache.lacking(session.cached, self._next(session))
            while lacking > free:
                youngest = resting.pop() if resting else kept.pop()
                preempted.append(youngest)
                free += cache.only_of(youngest.cached)
                if youngest is session:
                    break
            else:
                free -= lacking
        return kept, preempted, free

    def _next(self, session: Session) -> int:
        """Returns how many positions a session needs to go on: for its whole prompt, or for the next row."""
        return len(session.context.tokens) if session.reads else session.cached.length + 1

    def _awaits(self, tokens: Sequence[int], readers: Iterable[Session]) -> bool:
        """Whether another session is reading a first block that these tokens could adopt once it is read."""
        block = self.engine.cache.block
        first = tokens[:block]
        if len(first) < block or not self.engine.shares_prefixes or self.engine.cache.matching(first):
            return False
        return any(session.context.tokens[:block] == first for session in readers)

    # --- carrying out

    def enter(self, plan: StepPlan) -> StepPlan:
        """Takes and gives places as planned. Returns the plan without sessions that have failed or found no room."""
        self.iteration += 1
        for session in plan.preempted:
            self._give_up(session)
            self.drafter.pause(session.context)
        for session in plan.admitted:
            session.sequence = CachedSequence.empty(self.engine.cache.block)
            if self.engine.shares_prefixes:
                self.engine.cache.adopt(session.sequence, session.context.tokens[:-1])
                self.engine.restore(session.sequence)
        alone = len(plan.admitted) == 1 and not plan.seats and len(plan.chunks) <= 1
        for session in plan.admitted:
            self._attempt(session, self._admit, alone)
        chunks = [(session, count) for session, count in plan.chunks if session.sequence is not None]
        chunks = [each for each in chunks if self._attempt(each[0], self._make_room, alone)]
        seats = [seat for seat in plan.seats if self._attempt(seat.session, partial(self._sit, seat.depth), alone)]
        return replace(plan, chunks=tuple(chunks), seats=tuple(seats))

    def _attempt(self, session: Session, work: Callable[[Session], None], alone: bool) -> bool:
        """Whether `work` succeeds. Without room, a session waits unless it is alone; any other error ends it."""
        try:
            work(session)
        except TooLongError as error:
            if alone:
                session.fail(error)
            self._give_up(session)
        except Exception as error:
            session.fail(error)
            self.leave(session)
        return session.sequence is not None

    def _admit(self, session: Session) -> None:
        self.engine.cache.reserve(session.cached, len(session.context.tokens))
        self.engine.begin(session.cached, session.request.inputs)
        if not session.begun:
            session.begun = True
            self.drafter.begin(session.context)
        if not session.reads:
            session.announce()

    def _make_room(self, session: Session) -> None:
        self.engine.make_room(session.cached, self._next(session))

    def _sit(self, depth: int, session: Session) -> None:
        session.last = self.iteration
        session.announce()
        self.engine.make_room(session.cached, session.cached.length + depth + 1)

    def committed(self, session: Session) -> None:
        """Called when a step has committed tokens of a session: others may now adopt its full blocks."""
        if self.engine.shares_prefixes:
            self.engine.cache.publish(session.cached, session.context.tokens)
        if not session.reads:
            session.announce()

    def leave(self, session: Session) -> None:
        """Ends a session's part in steps. Its text stays; an error of the drafter or a hook reaches its caller."""
        session.finished = True
        self._give_up(session)
        ends: list[Callable[[], None]] = [] if session.hooks is None else [session.hooks.end]
        if session.begun:
            session.begun = False
            ends.append(partial(self.drafter.end, session.context))
        for end in ends:
            try:
                end()
            except Exception as error:
                session.error = session.error or error

    def fork(self, session: Session, forked: Session, shared: int) -> None:
        """Gives a session whose text begins with `shared` tokens of another's what that one has cached of them."""
        if session.sequence is None:
            return
        length = min(shared, len(forked.context.tokens) - 1)
        forked.sequence = self.engine.cache.fork(session.sequence, length)
        self.engine.restore(forked.sequence)
        forked.begun = True
        try:
            self.drafter.begin(forked.context)
        except Exception as error:
            forked.fail(error)
            self.leave(forked)

    def stuck(self, session: Session) -> TooLongError:
        """Returns why a session cannot get room although no other one holds any."""
        positions, free = len(session.context.tokens), self.engine.cache.free_positions
        return TooLongError(
            f"{positions} positions need more room in the cache than the {free} positions that are free: shorten the "
            "prompt or max_new_tokens, or compile with a larger max_length"
        )

    def _give_up(self, session: Session) -> None:
        if session.sequence is not None:
            self.engine.cache.release(session.sequence)
            session.sequence = None
