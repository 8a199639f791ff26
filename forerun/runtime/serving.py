"""Many callers, one model: their sessions share steps, which the callers' own threads run.

Whoever waits for news runs the next step for all sessions, unless another thread already does. There is no thread in
the background, and a single caller pays for nothing. Only Python's main thread can be interrupted in the middle of a
step (by Ctrl-C), so it runs steps of its own sessions alone, and leaves those of others to threads that wait for them.
"""

import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

from forerun.forking import survive_forks
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.engine import Engine
from forerun.runtime.generation import iterate
from forerun.runtime.policy import Policy
from forerun.runtime.request import Request, Step
from forerun.runtime.scheduler import Scheduler, StepPlan
from forerun.runtime.session import Session

PAUSE = 0.002
"""Seconds between looks at a cache that other users of the engine have filled."""
PATIENCE = 10.0
"""Seconds for which they may do nothing before a session that waits for them fails."""


class Serving:
    """The sessions of one model, and the threads that wait for them."""

    def __init__(self, engine: Engine, drafter: Drafter, policy: Policy) -> None:
        self.engine, self.policy = engine, policy
        self.scheduler = Scheduler(engine, drafter)
        self.sessions: list[Session] = []  # that have not ended, the oldest first
        self._threads: dict[Session, int] = {}  # that began them
        self._changed = threading.Condition()
        self._leader: int | None = None  # the thread that runs a step
        self._waiting = 0  # threads that wait for it
        survive_forks(self)

    @property
    def is_idle(self) -> bool:
        return not self.sessions

    def begin(self, requests: Iterable[Request]) -> list[Session]:
        """Returns a session for each request; they decode whenever somebody waits for any of them."""
        sessions = [Session(request) for request in requests]
        with self._changed:
            self._add(sessions)
        return sessions

    def fork(self, session: Session, request: Request, shared: int) -> Session:
        """Returns a session for a request whose prompt begins with `shared` tokens of another session's text.

        What both share is neither computed nor stored twice.
        """
        forked = Session(request)
        with self._stopped():
            self.scheduler.fork(session, forked, shared)
            self._add([forked])
        return forked

    def cancel(self, sessions: Iterable[Session]) -> None:
        """Ends sessions, wherever they are. Their blocks are free at the latest after the step that runs now."""
        with self._changed:
            for session in sessions:
                session.finished = True
            if self._leader is None:
                self._sweep()

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
        main = threading.current_thread() is threading.main_thread()
        while True:
            with self._changed:
                while not any(session.has_news for session in sessions):
                    if self._leader is None and not (main and self._waiting):
                        break
                    self._waiting += 1
                    try:
                        self._changed.wait()
                    finally:
                        self._waiting -= 1
                else:
                    self._changed.notify_all()  # another thread has to run the next step
                    return
                self._leader = threading.get_ident()
                ours = [each for each in self.sessions if not main or self._threads[each] == self._leader]
            self._lead(ours)

    # --- with the leader's rights

    def _lead(self, sessions: list[Session]) -> None:
        """Runs one step."""
        stuck = False
        try:
            with self.engine.serving:
                plan = self.scheduler.schedule(sessions)
                stuck = plan.is_empty
                if not stuck:
                    self._run(plan)
        finally:
            self._step_down()
        if stuck:
            self._wait_for_room(sessions)

    def _run(self, plan: StepPlan) -> None:
        try:
            iterate(self.engine, plan, self.scheduler, self.policy)
        except BaseException as error:  # how far the step has come is not known
            for session in [*plan.sessions, *plan.admitted]:
                session.fail(error)
            if not isinstance(error, Exception):
                raise

    @contextmanager
    def _stopped(self) -> Generator[None]:
        """No step runs while the body does."""
        with self._changed:
            while self._leader is not None:
                self._changed.wait()
            self._leader = threading.get_ident()
        try:
            with self.engine.serving:
                yield
        finally:
            self._step_down()

    def _step_down(self) -> None:
        with self._changed:
            self._leader = None
            self._sweep()
            self._changed.notify_all()

    def _wait_for_room(self, sessions: list[Session]) -> None:
        """Waits for other users of the cache, unless there are none or they do nothing either."""
        ran, until = self.engine.runs, time.monotonic() + PATIENCE
        while self.engine.cache.is_used and self.engine.runs == ran and time.monotonic() < until:
            time.sleep(PAUSE)
        if self.engine.runs == ran:
            for session in [session for session in sessions if not session.finished][:1]:
                session.fail(self.scheduler.stuck(session))

    # --- with the lock

    def _add(self, sessions: Iterable[Session]) -> None:
        for session in sessions:
            self._threads[session] = threading.get_ident()
            self.sessions.append(session)

    def _sweep(self) -> None:
        """Lets the sessions go that have ended."""
        ended = [session for session in self.sessions if session.finished]
        self.sessions = [session for session in self.sessions if not session.finished]
        for session in ended:
            del self._threads[session]
            with self.engine.serving:
                self.scheduler.leave(session)

    def forked(self) -> None:
        """Called in a forked child: the threads that wait for other sessions are not there."""
        self._changed, self._leader, self._waiting = threading.Condition(), None, 0
        for session, thread in self._threads.items():
            session.finished = session.finished or thread != threading.get_ident()
