"""The threads that share a step: the caller, and helpers, which sleep between steps (`codegen.tvm.team`)."""

import threading
import weakref

from forerun.codegen.tvm.layout import DISMISS, HELP, team_memory
from forerun.execute.tvm.library import Arguments, Module, Tensor
from forerun.forking import forks


class Team:
    """The threads of one executable. Helpers start with its first step, and leave when it is no longer used.

    A forked child has no helpers of its parent's: it starts its own, in memory of its own.
    """

    def __init__(self, code: Module, threads: int) -> None:
        self.code, self.threads = code, threads
        self._forks = -1
        self._memory = Tensor(team_memory(threads))

    def memory(self) -> Tensor:
        """Returns the memory that the threads share, for a step; helpers run from now on."""
        if self._forks != forks():
            self._forks = forks()
            self._memory = Tensor(team_memory(self.threads))
            self._start()
        return self._memory

    def _start(self) -> None:
        if self.threads == 1:
            return
        helping, memory = self.code.entry(HELP), self._memory
        helpers = [
            threading.Thread(target=helping.call, args=[Arguments(memory, number)], name="forerun", daemon=True)
            for number in range(1, self.threads)
        ]
        weakref.finalize(self, _dismiss, self.code, memory, helpers, forks())
        for each in helpers:
            each.start()


def _dismiss(code: Module, memory: Tensor, helpers: list[threading.Thread], made: int) -> None:
    """Sends helpers away, unless a fork has left them behind. They keep the code until they are gone."""
    if made != forks():
        return
    code.entry(DISMISS).call(Arguments(memory))
    for each in helpers:
        each.join()
