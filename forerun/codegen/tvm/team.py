"""How threads share a step: LLVM IR that is linked into it, as TIR has no atomic operations.

A team is the caller of `run` and helpers, threads that call `help` once and sleep between steps. Each call of the
program is a *turn*. A turn is cut into pieces, as many for each member. A member claims half of what is left of its own
pieces at a time; when it has waited for `PATIENCE`, it steals half of what another member has left. Whoever finishes a
turn's last piece opens the next turn. So a step waits for pieces, not for threads: a member that doesn't run holds up
nothing but the pieces that it has claimed, and a caller without helpers does all of them. Who waits spins `SPINS`
times, then sleeps until a turn opens.

A member has one piece of a short turn and up to `PIECES` of a long one, since a claim costs a third of a microsecond:
the processor finishes all loads before it, and prefetches none of the next piece's weights.

The team's memory (`layout.team_memory`) is int64 words in lines of `LINE`:

    line 0          state: turn << 16 | pieces finished in it; a turn is its number << 4 | pieces of a member, 0 if idle
                    asleep: 1 if a member may sleep
                    closed: 1 once helpers shall leave
    line 1          the step: number of its first turn, its first call, how many calls, columns of the program, rows,
                    pointers
    line 2 + m      member m's pieces: turn << 16 | the first that is left << 8 | one after the last
                    from word 8 on, its own notes: finished, not yet reported; its turn; whose pieces it tries next

A turn's number never returns, and a claim compares it: who is late claims nothing. A member reads the step only with a
claim in hand, since the step can't change before its pieces are finished.
"""

from forerun.codegen.tvm.layout import LINE
from forerun.codegen.tvm.untyped import tirx

PIECES = 8
"""The most pieces of a turn for each member."""

PIECE = 17
"""Binary logarithm of the words of weights that make a piece at up to 8 rows: 512 KiB, 30 microseconds of a thread."""

PATIENCE = 40
"""Pauses before a member steals: a microsecond, as a look at another's pieces delays it."""

SPINS, IDLE_SPINS = 2000, 10000
"""Pauses before a wait becomes a sleep: about 50 microseconds, longer than a piece takes, and 250 between steps."""

STEP = LINE
COLUMNS, POINTERS = STEP + 3, STEP + 5
"""Words of the step, and of its pointers: the program, the sizes and the memories."""

_TAKE = f"""
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.umax.i64(i64, i64)

define i64 @forerun_claim(ptr %pieces, i64 %turn, i1 %own, i1 %alone) {{
  %each = and i64 %turn, 15
  %first.seen = load atomic i64, ptr %pieces acquire, align 8
  br label %look
look:
  %seen = phi i64 [ %first.seen, %0 ], [ %now, %claim ]
  %seen.turn = lshr i64 %seen, 16
  %late = icmp ugt i64 %seen.turn, %turn
  br i1 %late, label %none, label %count
count:
  %same = icmp eq i64 %seen.turn, %turn
  %left = select i1 %same, i64 %seen, i64 %each
  %left.low = and i64 %left, 65535
  %begin = lshr i64 %left.low, 8
  %end = and i64 %left, 255
  %size = sub i64 %end, %begin
  %empty = icmp eq i64 %size, 0
  br i1 %empty, label %none, label %claim
claim:
  %more = add i64 %size, 1
  %half = lshr i64 %more, 1
  %taken = select i1 %alone, i64 %size, i64 %half
  %front = add i64 %begin, %taken
  %back = sub i64 %end, %taken
  %first = select i1 %own, i64 %begin, i64 %back
  %begin.new = select i1 %own, i64 %front, i64 %begin
  %end.new = select i1 %own, i64 %end, i64 %back
  %turn.high = shl i64 %turn, 16
  %begin.high = shl i64 %begin.new, 8
  %rest = or i64 %begin.high, %end.new
  %new = or i64 %turn.high, %rest
  %exchanged = cmpxchg ptr %pieces, i64 %seen, i64 %new acq_rel acquire, align 8
  %now = extractvalue {{ i64, i1 }} %exchanged, 0
  %done = extractvalue {{ i64, i1 }} %exchanged, 1
  br i1 %done, label %claimed, label %look
claimed:
  %first.high = shl i64 %first, 16
  %result = or i64 %first.high, %taken
  ret i64 %result
none:
  ret i64 0
}}

define void @forerun_open(ptr %team, i64 %turn) {{
  %asleep = getelementptr i64, ptr %team, i64 1
  %state = shl i64 %turn, 16
  store atomic i64 %state, ptr %team seq_cst, align 8
  %sleeping = load atomic i32, ptr %asleep seq_cst, align 8
  %none = icmp eq i32 %sleeping, 0
  br i1 %none, label %end, label %wake
wake:
  store atomic i32 0, ptr %asleep seq_cst, align 8
  call void @forerun_wake(ptr %asleep)
  br label %end
end:
  ret void
}}

define i64 @forerun_pieces(ptr %team, i64 %call, i64 %members) {{
  %columns.at = getelementptr i64, ptr %team, i64 {COLUMNS}
  %rows.at = getelementptr i64, ptr %team, i64 {COLUMNS + 1}
  %program.at = getelementptr i64, ptr %team, i64 {POINTERS}
  %columns = load atomic i64, ptr %columns.at monotonic, align 8
  %rows = load atomic i64, ptr %rows.at monotonic, align 8
  %program = load atomic ptr, ptr %program.at monotonic, align 8
  %row = mul i64 %call, %columns
  %word = add i64 %row, 1
  %words.at = getelementptr i64, ptr %program, i64 %word
  %words = load i64, ptr %words.at, align 8
  %tiles = lshr i64 %rows, 3
  %times = add i64 %tiles, 1
  %work = mul i64 %words, %times
  %share = udiv i64 %work, %members
  %by.words = lshr i64 %share, {PIECE}
  %sum = add i64 %by.words, %tiles
  %least = call i64 @llvm.umax.i64(i64 %sum, i64 1)
  %pieces = call i64 @llvm.umin.i64(i64 %least, i64 {PIECES})
  ret i64 %pieces
}}

define i64 @forerun_begin(ptr %team, i64 %members, i64 %first, i64 %calls, i64 %columns, i64 %rows) {{
  %base.at = getelementptr i64, ptr %team, i64 {STEP}
  %first.at = getelementptr i64, ptr %team, i64 {STEP + 1}
  %calls.at = getelementptr i64, ptr %team, i64 {STEP + 2}
  %columns.at = getelementptr i64, ptr %team, i64 {COLUMNS}
  %rows.at = getelementptr i64, ptr %team, i64 {COLUMNS + 1}
  %state = load atomic i64, ptr %team acquire, align 8
  %number = lshr i64 %state, 20
  %next = add i64 %number, 1
  store atomic i64 %next, ptr %base.at monotonic, align 8
  store atomic i64 %first, ptr %first.at monotonic, align 8
  store atomic i64 %calls, ptr %calls.at monotonic, align 8
  store atomic i64 %columns, ptr %columns.at monotonic, align 8
  store atomic i64 %rows, ptr %rows.at monotonic, align 8
  %pieces = call i64 @forerun_pieces(ptr %team, i64 %first, i64 %members)
  %next.high = shl i64 %next, 4
  %turn = or i64 %next.high, %pieces
  call void @forerun_open(ptr %team, i64 %turn)
  ret i64 0
}}

define i64 @forerun_dismiss(ptr %team) {{
  %closed = getelementptr i64, ptr %team, i64 2
  %state = load atomic i64, ptr %team acquire, align 8
  %number = lshr i64 %state, 20
  %next = add i64 %number, 1
  %turn = shl i64 %next, 4
  store atomic i64 1, ptr %closed seq_cst, align 8
  call void @forerun_open(ptr %team, i64 %turn)
  ret i64 0
}}

define i64 @forerun_take(ptr %team, i64 %member, i64 %members, i64 %finished) {{
  %asleep = getelementptr i64, ptr %team, i64 1
  %closed = getelementptr i64, ptr %team, i64 2
  %base.at = getelementptr i64, ptr %team, i64 {STEP}
  %first.at = getelementptr i64, ptr %team, i64 {STEP + 1}
  %calls.at = getelementptr i64, ptr %team, i64 {STEP + 2}
  %lines = getelementptr i64, ptr %team, i64 {2 * LINE}
  %line.word = mul i64 %member, {LINE}
  %line = getelementptr i64, ptr %lines, i64 %line.word
  %done.at = getelementptr i64, ptr %line, i64 8
  %turn.at = getelementptr i64, ptr %line, i64 9
  %tried.at = getelementptr i64, ptr %line, i64 10
  %alone = icmp eq i64 %members, 1
  %done.before = load i64, ptr %done.at, align 8
  %done.after = add i64 %done.before, %finished
  store i64 %done.after, ptr %done.at, align 8
  %tried.before = load i64, ptr %tried.at, align 8
  %turn.before = load i64, ptr %turn.at, align 8
  %active.before = and i64 %turn.before, 15
  %idle.before = icmp eq i64 %active.before, 0
  br i1 %idle.before, label %wait, label %resume
resume:
  %others.before = icmp ne i64 %tried.before, 0
  br i1 %others.before, label %report, label %own

own:                                              ; pieces of its own
  %own.turn = load i64, ptr %turn.at, align 8
  %own.claim = call i64 @forerun_claim(ptr %line, i64 %own.turn, i1 true, i1 %alone)
  %own.none = icmp eq i64 %own.claim, 0
  br i1 %own.none, label %own.empty, label %claimed
own.empty:
  store i64 1, ptr %tried.at, align 8
  br label %report

report:                                           ; the last to finish opens the next turn
  %done = load i64, ptr %done.at, align 8
  %nothing = icmp eq i64 %done, 0
  br i1 %nothing, label %wait, label %add
add:
  store i64 0, ptr %done.at, align 8
  %state.before = atomicrmw add ptr %team, i64 %done acq_rel, align 8
  %state.after = add i64 %state.before, %done
  %reported = and i64 %state.after, 65535
  %added.turn = lshr i64 %state.after, 16
  %added.each = and i64 %added.turn, 15
  %all = mul i64 %members, %added.each
  %last = icmp eq i64 %reported, %all
  br i1 %last, label %advance, label %wait
advance:
  %base = load atomic i64, ptr %base.at monotonic, align 8
  %calls = load atomic i64, ptr %calls.at monotonic, align 8
  %number = lshr i64 %state.after, 20
  %next = add i64 %number, 1
  %next.high = shl i64 %next, 4
  %called = sub i64 %next, %base
  %more = icmp ult i64 %called, %calls
  br i1 %more, label %advance.call, label %advance.open
advance.call:
  %first = load atomic i64, ptr %first.at monotonic, align 8
  %next.call = add i64 %first, %called
  %next.pieces = call i64 @forerun_pieces(ptr %team, i64 %next.call, i64 %members)
  br label %advance.open
advance.open:
  %pieces = phi i64 [ 0, %advance ], [ %next.pieces, %advance.call ]
  %next.turn = or i64 %next.high, %pieces
  call void @forerun_open(ptr %team, i64 %next.turn)
  br label %wait

wait:
  br label %spin
spin:
  %spins = phi i64 [ 0, %wait ], [ %spins, %steal.next ], [ %spins.more, %pause ]
  %state = load atomic i64, ptr %team acquire, align 8
  %state.turn = lshr i64 %state, 16
  %turn = load i64, ptr %turn.at, align 8
  %unchanged = icmp eq i64 %state.turn, %turn
  br i1 %unchanged, label %same, label %changed
changed:
  store i64 %state.turn, ptr %turn.at, align 8
  store i64 0, ptr %tried.at, align 8
  %pieces.here = and i64 %state.turn, 15
  %active.now = icmp ne i64 %pieces.here, 0
  br i1 %active.now, label %own, label %idle
idle:                                             ; the step is done: the caller returns, helpers wait for the next
  %caller = icmp eq i64 %member, 0
  br i1 %caller, label %leave, label %wait
same:
  %is.closed = load atomic i64, ptr %closed monotonic, align 8
  %leaving = icmp ne i64 %is.closed, 0
  br i1 %leaving, label %leave, label %steal
steal:                                            ; pieces of one other member before each look at the state
  %turn.active = and i64 %turn, 15
  %turn.idle = icmp eq i64 %turn.active, 0
  %tried = load i64, ptr %tried.at, align 8
  %exhausted = icmp uge i64 %tried, %members
  %none.left = or i1 %turn.idle, %exhausted
  %soon = icmp ult i64 %spins, {PATIENCE}
  %no.steal = or i1 %none.left, %soon
  br i1 %no.steal, label %pause, label %try
try:
  %sum = add i64 %member, %tried
  %other = urem i64 %sum, %members
  %other.word = mul i64 %other, {LINE}
  %other.line = getelementptr i64, ptr %lines, i64 %other.word
  %other.claim = call i64 @forerun_claim(ptr %other.line, i64 %turn, i1 false, i1 false)
  %other.none = icmp eq i64 %other.claim, 0
  br i1 %other.none, label %steal.next, label %claimed
steal.next:
  %tried.next = add i64 %tried, 1
  store i64 %tried.next, ptr %tried.at, align 8
  br label %spin
pause:
  %spins.more = add i64 %spins, 1
  call void @forerun_pause()
  %most = select i1 %turn.idle, i64 {IDLE_SPINS}, i64 {SPINS}
  %spun = icmp ugt i64 %spins.more, %most
  br i1 %spun, label %sleep, label %spin
sleep:
  store atomic i32 1, ptr %asleep seq_cst, align 8
  %state.again = load atomic i64, ptr %team seq_cst, align 8
  %moved = icmp ne i64 %state.again, %state
  br i1 %moved, label %wait, label %rest
rest:
  call void @forerun_rest(ptr %asleep, i1 %turn.idle)
  br label %wait

claimed:
  %owner = phi i64 [ %member, %own ], [ %other, %try ]
  %claim = phi i64 [ %own.claim, %own ], [ %other.claim, %try ]
  %claim.turn = load i64, ptr %turn.at, align 8
  %claim.number = lshr i64 %claim.turn, 4
  %each = and i64 %claim.turn, 15
  %step.base = load atomic i64, ptr %base.at monotonic, align 8
  %step.first = load atomic i64, ptr %first.at monotonic, align 8
  %past = sub i64 %claim.number, %step.base
  %call = add i64 %step.first, %past
  %call.high = shl i64 %call, 32
  %before = mul i64 %owner, %each
  %before.high = shl i64 %before, 16
  %piece = add i64 %claim, %before.high
  %each.high = shl i64 %each, 8
  %piece.each = or i64 %piece, %each.high
  %result = or i64 %call.high, %piece.each
  ret i64 %result
leave:
  ret i64 -1
}}

define i64 @forerun_number(ptr %team, i64 %word) {{
  %at = getelementptr i64, ptr %team, i64 %word
  %number = load atomic i64, ptr %at monotonic, align 8
  ret i64 %number
}}

define ptr @forerun_pointer(ptr %team, i64 %word) {{
  %at = getelementptr i64, ptr %team, i64 %word
  %pointer = load atomic ptr, ptr %at monotonic, align 8
  ret ptr %pointer
}}

define i64 @forerun_point(ptr %team, i64 %word, ptr %pointer) {{
  %at = getelementptr i64, ptr %team, i64 %word
  store atomic ptr %pointer, ptr %at monotonic, align 8
  ret i64 0
}}
"""

_PAUSE = """
{declared}
define void @forerun_pause() {{
  {pause}
  ret void
}}
"""

_FUTEX = """
declare i64 @syscall(i64, ...)
define void @forerun_rest(ptr %asleep, i1 %idle) {{
  call i64 (i64, ...) @syscall(i64 {futex}, ptr %asleep, i32 128, i32 1, ptr null)
  ret void
}}
define void @forerun_wake(ptr %asleep) {{
  call i64 (i64, ...) @syscall(i64 {futex}, ptr %asleep, i32 129, i32 2147483647)
  ret void
}}
"""
"""FUTEX_WAIT_PRIVATE while a member may sleep, and FUTEX_WAKE_PRIVATE."""

_POLL = """
declare i32 @{sleep}(i32)
define void @forerun_rest(ptr %asleep, i1 %idle) {{
  %time = select i1 %idle, i32 {idle}, i32 {busy}
  call i32 @{sleep}(i32 %time)
  ret void
}}
define void @forerun_wake(ptr %asleep) {{
  ret void
}}
"""
"""Where there is no futex: short sleeps, longer between steps."""

_FUTEXES = {"x86_64": 202, "aarch64": 98}
"""Numbers of Linux's system call."""


def team_text(triple: str) -> str:
    """Returns the LLVM IR of a team for a machine."""
    architecture = triple.split("-")[0].replace("arm64", "aarch64")
    declared, pause = {
        "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
        "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
    }.get(architecture, ("", 'fence syncscope("singlethread") seq_cst'))
    if "linux" in triple and architecture in _FUTEXES:
        sleep = _FUTEX.format(futex=_FUTEXES[architecture])
    elif "windows" in triple:
        sleep = _POLL.format(sleep="Sleep", idle=1, busy=0)
    else:
        sleep = _POLL.format(sleep="usleep", idle=500, busy=1)
    return _PAUSE.format(declared=declared, pause=pause) + sleep + _TAKE


def call(dtype: str, name: str, *arguments: object) -> object:
    """Calls a function of the text."""
    return tirx.call_extern(dtype, f"forerun_{name}", *arguments)
