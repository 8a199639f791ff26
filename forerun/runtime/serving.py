"""Many callers, one model: their sessions share steps, which the callers' own threads run.

Whoever waits for news runs the next step for all sessions, unless another thread already does. There is no thread in
the background, and a single caller pays for nothing. Ctrl-C waits for the step to end, so it ends only the sessions of
the thread that it interrupts.
"""

import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

from forerun.errors import InvalidOptionError
from forerun.forking import lost, survive_forks
from forerun.interrupts import uninterrupted
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.engine import Engine
from forerun.runtime.generation import iterate
from forerun.runtime.policy import Policy
from forerun.runtime.recording import Listener
from forerun.runtime.request import Request, Step
from forerun.runtime.scheduler import Scheduler, StepPlan
from forerun.runtime.session import Session

PAUSE = 0.002
"""Seconds between looks at a cache that other users of the engine have filled."""
PATIENCE = 10.0
"""Seconds for which they may do nothing before a session that waits for them fails."""


class Serving:
    """The sessions of one model, and the threads that wait for them.

    One thread at a time leads: it alone changes sessions and the cache, and holds `engine.serving`. `_changed` guards
    the list of sessions and who leads, for moments only; nobody waits for `engine.serving` while holding it.
    """

    def __init__(self, engine: Engine, drafter: Drafter, policy: Policy) -> None:
        self.engine, self.policy = engine, policy
        self.scheduler = Scheduler(engine, drafter)
        self.sessions: list[Session] = []  # that have not ended, the oldest first
        self._listeners: tuple[Listener, ...] = ()
        self._changed = threading.Condition()
        self._leader: int | None = None  # the thread that leads
        self._asking = 0  # threads that want to lead for something else than a step, and come first
        self._stuck: tuple[tuple[int, int], float] | None = None  # what was seen when nothing could go on, and when
        survive_forks(self)

    @property
    def is_idle(self) -> bool:
        return not self.sessions

    @contextmanager
    def listening(self, listener: Listener) -> Generator[None]:
        """Tells `listener` of every iteration that runs here while the body does; an error that it raises ends them."""
        with self._changed:
            self._listeners = (*self._listeners, listener)
        try:
            yield
        finally:
            with self._changed:
                self._listeners = tuple(each for each in self._listeners if each is not listener)

    def begin(self, requests: Iterable[Request]) -> list[Session]:
        """Returns a session for each request; they decode whenever somebody waits for any of them."""
        self.refuse_within_a_step()
        sessions = [Session(request) for request in requests]
        with self._changed:
            self.sessions += sessions
        return sessions

    def fork(self, session: Session, request: Request, shared: int) -> Session:
        """Returns a session for a request whose prompt begins with `shared` tokens of another session's text.

        What both share is neither computed nor stored twice.
        """
        self.refuse_within_a_step()
        forked = Session(request)
        with self._stopped():
            self.scheduler.fork(session, forked, shared)
            with self._changed:
                self.sessions.append(forked)
        return forked

    def cancel(self, sessions: Iterable[Session]) -> None:
        """Ends sessions, wherever they are. Their blocks are free at the latest after the step that runs now."""
        self.abandon(sessions)
        with uninterrupted():
            if self._claims():
                with self._leading():
                    pass  # ended sessions are let go

    def abandon(self, sessions: Iterable[Session]) -> None:
        """Ends sessions without waiting for any lock; the next step or `cancel` lets them go."""
        for session in sessions:
            session.finished = True

    def steps(self, session: Session) -> Generator[Step]:
        """Iterates over a session's steps. Close the iterator to end the session before its text does."""
        try:
            while True:
                self.wait([session])
                yield from session.take()
                if session.finished and not session.has_steps:
                    return
        finally:
            self.cancel([session])

    def wait(self, sessions: Sequence[Session]) -> None:
        """Returns when one of the sessions has news; runs steps until then, or lets another thread."""
        self.refuse_within_a_step()
        while not self._have_news(sessions):
            with uninterrupted():
                if self._claims():
                    self._lead()

    def _have_news(self, sessions: Sequence[Session]) -> bool:
        """Returns whether one of the sessions has news; if not, nobody leads."""
        with self._changed:
            while not (found := any(session.has_news for session in sessions)):
                if self._leader is None and not self._asking:
                    break
                self._changed.wait()
            return found

    # --- leading

    def _claims(self) -> bool:
        """Lets this thread lead, unless another one does or is about to."""
        with self._changed:
            if self._leader is not None or self._asking:
                return False
            self._leader = threading.get_ident()
            return True

    @contextmanager
    def _leading(self) -> Generator[None]:
        """Has the engine for the body, then lets the sessions go that have ended, and leads no longer."""
        try:
            with self.engine.serving:
                try:
                    yield
                finally:
                    self._sweep()
        finally:
            with self._changed:
                self._leader = None
                self._changed.notify_all()

    @contextmanager
    def _stopped(self) -> Generator[None]:
        """Leads while the body runs, so that no step does."""
        with uninterrupted():
            with self._changed:
                self._asking += 1
                try:
                    while self._leader is not None:
                        self._changed.wait()
                    self._leader = threading.get_ident()
                finally:
                    self._asking -= 1
            with self._leading():
                yield

    def _lead(self) -> None:
        """Runs one step."""
        waits = False
        with self._leading():
            self._sweep()
            plan = self.scheduler.schedule(list(self.sessions))
            if plan.is_empty:
                waits = self._waits_for_room()
            else:
                self._stuck = None
                self._run(plan)
        if waits:
            time.sleep(PAUSE)

    def _run(self, plan: StepPlan) -> None:
        try:
            iterate(self.engine, plan, self.scheduler, self.policy, self._listeners)
        except BaseException as error:  # how far the step has come is not known
            for session in [*plan.sessions, *plan.admitted]:
                session.fail(error)
            if not isinstance(error, Exception):
                raise

    def _sweep(self) -> None:
        """Lets the sessions go that have ended."""
        with self._changed:
            ended = [session for session in self.sessions if session.finished]
            if ended:
                self.sessions = [session for session in self.sessions if not session.finished]
        for session in ended:
            self.scheduler.leave(session)

    def _waits_for_room(self) -> bool:
        """Whether other users of the cache may yet give some back; if not, the oldest session fails."""
        seen, now = (self.engine.runs, self.engine.cache.free), time.monotonic()
        if self._stuck is None or self._stuck[0] != seen:
            self._stuck = seen, now
        waits = self.engine.cache.is_used and now - self._stuck[1] < PATIENCE
        oldest = next((session for session in self.sessions if not session.resting), None)
        if not waits and oldest is not None:
            oldest.fail(self.scheduler.stuck(oldest))
            self._stuck = None
        return waits

    def refuse_within_a_step(self) -> None:
        if self._leader == threading.get_ident():
            raise InvalidOptionError(
                "a drafter, policy or hook cannot generate with the model that it serves: compile another one for it"
            )

    def forked(self) -> None:
        """Called in a forked child: the threads that wait for other sessions are not there."""
        self._changed, self._leader, self._asking = threading.Condition(), None, 0
        for session in self.sessions:
            if session.thread != threading.get_ident():
                session.fail(lost("decoding"))
