"""The threads that share a step: every piece is done once and in order, and nobody waits for a thread that is away."""

import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from steps import decoder, prompt_rows

from forerun.codegen.tvm.layout import LINE, team_memory
from forerun.codegen.tvm.program import build
from forerun.codegen.tvm.target import Machine
from forerun.codegen.tvm.team import PIECES, POINTERS, call, team_text
from forerun.codegen.tvm.untyped import IRBuilder, T, tirx, tvm, tvm_ir
from forerun.execute.tvm.library import Arguments, Module, Tensor
from forerun.runtime.executable import WHOLE
from tests.compiled import tvm_step

COLUMNS = 3
"""Of the programs of these tests: a function's number, words of weights, and a slot."""


def _packed(name: str, arguments: int, text: str):
    """A function that calls one of the team's."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"global_symbol": name})
        handles = [T.arg(each, T.handle()) for each in ("team", "program", "result")]
        numbers = [T.arg(f"number_{at}", T.int64()) for at in range(arguments)]
        team = T.match_buffer(handles[0], (tirx.Var("lines", "int64"), LINE), "int64")
        program = T.match_buffer(handles[1], (tirx.Var("calls", "int64"), COLUMNS), "int64")
        result = T.match_buffer(handles[2], (1,), "int64")
        with T.attr(0, "pragma_import_llvm", text):
            here = tirx.address_of(team[0, 0])
            if name == "begin":
                place = tirx.IntImm("int64", POINTERS)
                T.evaluate(call("int64", "point", here, place, tirx.address_of(program[0, 0])))
            T.buffer_store(result, call("int64", name, here, *numbers), [0])
    return builder.get()


@pytest.fixture(scope="module")
def code():
    machine = Machine.host()
    functions = {"begin": 5, "take": 3, "dismiss": 0}
    text = team_text(machine.triple)
    module = tvm.IRModule({tvm_ir.GlobalVar(name): _packed(name, *of, text) for name, *of in functions.items()})
    return Module.of(build(module, machine.target))


class Team:
    """Members that call the scheduler themselves and note which pieces they were given."""

    def __init__(self, code: Module, members: int, words: list[int]) -> None:
        self.members = members
        self.program = Tensor(np.array([[0, each, 0] for each in words], np.int64))
        self.memory = Tensor(team_memory(members))
        self.functions = {name: code.entry(name) for name in ("begin", "take", "dismiss")}
        self.done: list[tuple[int, int, int]] = []  # member, call, piece, in the order in which they were finished
        self.begun: list[tuple[int, int]] = []  # call, and how many pieces were finished when it was first taken

    def call(self, name: str, *numbers: int) -> int:
        result = Tensor(np.zeros(1, np.int64))
        self.functions[name].call(Arguments(self.memory, self.program, result, *numbers))
        return int(result.array[0])

    def begin(self, rows: int = 1) -> None:
        numbers = 0, len(self.program.array), COLUMNS, rows
        self.call("begin", self.members, *numbers)

    def take(self, member: int, before: int = 0) -> int:
        """The next pieces of a member, once it has finished some."""
        return self.call("take", member, self.members, before & 255)

    def work(self, member: int, pause: Callable[[int], None] = lambda call: None) -> None:
        """Takes pieces until there are none; `pause` is called with pieces in hand."""
        taken = 0
        while (taken := self.take(member, taken)) >= 0:
            called = taken >> 32
            first = taken >> 16 & 0xFFFF
            self.begun.append((called, len(self.done)))
            pause(called)
            self.done += [(member, called, first + at) for at in range(taken & 255)]

    def dismiss(self) -> None:
        self.call("dismiss")


def require_order(team: Team, pieces: list[int]) -> None:
    """Every piece is done once, and no call begins before the one before it is finished."""
    expected = [(called, piece) for called, each in enumerate(pieces) for piece in range(team.members * each)]
    assert Counter(each[1:] for each in team.done) == Counter(expected)
    before = np.cumsum([0, *(team.members * each for each in pieces)])
    assert all(finished >= before[called] for called, finished in team.begun)


@pytest.mark.parametrize("members", [1, 2, 5])
def test_a_caller_alone_does_everything(code: Module, members: int) -> None:
    """Its helpers never come."""
    words = [0, 1 << 30, 0]
    team = Team(code, members, words)
    for rows, pieces in ((1, [1, PIECES, 1]), (1000, [PIECES] * 3), (1, [1, PIECES, 1])):
        team.done.clear()
        team.begun.clear()
        team.begin(rows)
        team.work(0)
        require_order(team, pieces)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("members", [2, 3, 16])
def test_every_piece_is_done_once_and_in_order(code: Module, members: int) -> None:
    """Members pause at random, for longer than a wait takes to become a sleep, with pieces in hand or without."""
    team = Team(code, members, [0, 1 << 30, 0, 0, 1 << 30])
    generator = np.random.default_rng(members)

    def pause(called: int) -> None:
        if generator.random() < 0.1:
            time.sleep(generator.random() * 0.002)

    helpers = [threading.Thread(target=team.work, args=[member, pause]) for member in range(1, members)]
    for each in helpers:
        each.start()
    for rows, pieces in [(1, [1, PIECES, 1, 1, PIECES]), (64, [PIECES] * 5)] * 20:
        team.done.clear()
        team.begun.clear()
        team.begin(rows)
        team.work(0, pause)
        require_order(team, pieces)
        if generator.random() < 0.2:
            time.sleep(0.002)  # helpers fall asleep
    team.dismiss()
    for each in helpers:
        each.join()


@pytest.mark.timeout(120)
def test_a_member_that_stalls_holds_up_only_what_it_has_taken(code: Module) -> None:
    team = Team(code, 2, [0, 1 << 30, 0])
    stalled, going = threading.Event(), threading.Event()

    def stall(called: int) -> None:
        if called == 1 and not stalled.is_set():
            stalled.set()
            going.wait()

    helper = threading.Thread(target=team.work, args=[1, stall])
    team.begin()
    helper.start()  # it does all of the first call: the caller is away
    assert stalled.wait(30)
    caller = threading.Thread(target=team.work, args=[0])
    caller.start()
    held = PIECES // 2
    deadline = time.monotonic() + 30
    while len(team.done) < 2 + 2 * PIECES - held and time.monotonic() < deadline:
        time.sleep(0.001)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.2, "the caller sleeps, after a while"
    assert len(team.done) == 2 + 2 * PIECES - held, "all but what the helper holds"
    going.set()
    caller.join()
    require_order(team, [1, PIECES, 1])
    team.dismiss()
    helper.join()


@pytest.mark.timeout(120)
def test_a_member_that_looked_long_ago_claims_nothing_of_that_time(code: Module) -> None:
    """It knows the turn of the first call, which is over, and believes that it has its own piece of it to do."""
    team = Team(code, 2, [0, 0])
    team.begin()
    first = int(team.memory.array[0, 0]) >> 16
    team.work(0)
    team.memory.array[3, 9:11] = first, 0
    team.done.clear()
    team.begun.clear()
    helper = threading.Thread(target=team.work, args=[1])
    helper.start()
    time.sleep(0.01)
    assert not team.done
    team.begin()
    team.work(0)
    require_order(team, [1, 1])
    team.dismiss()
    helper.join()


# --- compiled steps


@pytest.fixture(scope="module")
def compiled():
    return decoder()


def steps_of(compiled, threads: int):
    module, weights = compiled
    return tvm_step(module, weights.__getitem__, max_rows=64, max_length=256, threads=threads)


def logits(executable) -> np.ndarray:
    """Of a prompt in one step, and of rows after it one by one."""
    state = executable.new_state(4)
    found = [executable.run(WHOLE, state, prompt_rows(np.arange(30), 0, [0, 1, 2])).logits.copy()]
    for at in range(30, 45):
        found.append(executable.run(WHOLE, state, prompt_rows([at], at, [0, 1, 2])).logits.copy())
    return np.concatenate(found)


@pytest.mark.timeout(120)
def test_more_threads_than_processors_give_the_same_bits(compiled) -> None:
    expected = logits(steps_of(compiled, 1))
    for threads in (2, 3, 12):
        executable = steps_of(compiled, threads)
        for _ in range(2):
            assert np.array_equal(logits(executable), expected)


@pytest.mark.timeout(120)
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_threads_that_share_one_processor_hold_each_other_up_little(compiled) -> None:
    """Beside threads that spin at a barrier, a step of 22 calls would take 22 time slices and more."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        seconds = {threads: _best_seconds(steps_of(compiled, threads)) for threads in (1, 4)}
    finally:
        os.sched_setaffinity(0, allowed)
    assert seconds[4] < 4 * seconds[1] + 0.01


def _best_seconds(executable) -> float:
    logits(executable)
    seconds: list[float] = []
    for _ in range(10):
        start = time.perf_counter()
        logits(executable)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_helpers_sleep_between_steps_and_leave_with_their_executable(compiled) -> None:
    def helpers() -> list[threading.Thread]:
        gc.collect()
        return [each for each in threading.enumerate() if each.name == "forerun"]

    before = len(helpers())
    executable = steps_of(compiled, 3)
    logits(executable)
    assert len(helpers()) == before + 2
    time.sleep(0.1)
    start = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - start < 0.1
    del executable
    assert len(helpers()) == before


@pytest.mark.parametrize(
    ("triple", "cpu", "sleep"),
    [
        ("aarch64-linux-gnu", "generic", "syscall"),
        ("riscv64-linux-gnu", "generic-rv64", "usleep"),
        ("arm64-apple-darwin", "apple-m1", "usleep"),
        ("x86_64-pc-windows-msvc", "x86-64", "Sleep"),
    ],
)
def test_the_scheduler_compiles_for_other_systems(triple: str, cpu: str, sleep: str) -> None:
    module = tvm.IRModule({tvm_ir.GlobalVar("take"): _packed("take", 3, team_text(triple))})
    assert sleep in Module.of(build(module, Machine.of(triple, cpu).target)).text("s")
