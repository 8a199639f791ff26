# pyright: basic, reportGeneralTypeIssues=false, reportOperatorIssue=false
"""loop: the kernels around a step, with which decoding goes on without the host: draft, verify, remember, commit.

This file is read as text, never imported by forerun. The dump folder gets a copy, which can be replaced as any other.

    look_up    where the text read before as it reads at its end         grid (chunks of the text)
    propose    the likeliest tree, row after row, as inputs of a step    one program
    verify     the path that was drawn, its tokens, what it taught       one program
    remember   each token's likeliest successors, as the step saw them   grid (rows)
    commit     keys and values of the path, moved home                   grid (rows, parts of a slot)

`state` points to the root's position LENGTH, to LAST, the last position that may have a row, and to ROUND, how many
rounds were verified. `tokens` is the text, tokens[LENGTH] the root. A tree's rows are numbered in the order in which
they were found, the likeliest first, so that its first n rows are the tree of n rows. No choice that is made here can
change the text; integers are int32.
"""

import triton
import triton.language as tl

LENGTH = tl.constexpr(0)
LAST = tl.constexpr(1)
ROUND = tl.constexpr(2)
POSITIONS = tl.constexpr(1 << 20)
"""More than any text has: a find is its matched length times this, and its position."""
NONE = tl.constexpr(2147483647)


@triton.jit
def look_up(state, tokens, finds, CHUNK: tl.constexpr, PLACES: tl.constexpr, LONGEST: tl.constexpr):
    """The PLACES best ends of earlier occurrences in a chunk: the most tokens match there, of equals the latest."""
    length = tl.load(state + LENGTH)
    start = tl.program_id(0) * CHUNK
    if start < length:
        end = start + tl.arange(0, CHUNK)
        alive = end < length
        matched = tl.full([CHUNK], 0, tl.int32)
        for back in range(LONGEST):
            wanted = tl.load(tokens + length - back, mask=back <= length, other=-2)
            own = tl.load(tokens + end - back, mask=alive & (end >= back), other=-1)
            alive = alive & (own == wanted)
            matched += tl.where(alive, 1, 0)
        find = tl.where(matched > 0, matched * POSITIONS + end, 0)
        for place in range(PLACES):
            best = tl.max(find, axis=0)
            tl.store(finds + tl.program_id(0) * PLACES + place, best)
            find = tl.where(find == best, 0, find)


@triton.jit
def children(
    tokens, successors, shares, hits, trials, end, matched, token, depth, places, length, deepest,
    PLACES: tl.constexpr, LONGEST: tl.constexpr, SUCCESSORS: tl.constexpr, SHARES: tl.constexpr,
    RECYCLED: tl.constexpr, WIDTH: tl.constexpr, RANKS: tl.constexpr, DEPTHS: tl.constexpr,
):  # fmt: skip
    """What may follow a row: (token, probability given the row, feature), each [WIDTH]; no child has probability 0.

    The first PLACES lanes are continuations of earlier occurrences that read as the row's path does (`places`, a bit
    each), the next SUCCESSORS what the target thought likeliest when it last saw the row's token. A token that both
    propose stands once, with a feature that says so.
    """
    lane = tl.arange(0, WIDTH)
    looked = (lane < PLACES) & (((places >> lane) & 1) == 1) & (end + depth + 1 <= length)
    continued = tl.load(tokens + end + depth + 1, mask=looked, other=-1)
    recycled = (lane >= PLACES) & (lane < tl.where(depth < RECYCLED, PLACES + SUCCESSORS, 0))
    place = token * SUCCESSORS + lane - PLACES
    child = tl.where(lane < PLACES, continued, tl.load(successors + place, mask=recycled, other=-1))
    share = tl.load(shares + place, mask=recycled, other=-1) + 1
    child = tl.where(depth < deepest, child, -1)
    # Reductions run over axis 0, which lies within threads; those over axis 1 would take a shuffle a row.
    equal = (child[:, None] == child[None, :]) & (child >= 0)[None, :]
    before = lane[:, None] < lane[None, :]
    first = (child >= 0) & (tl.max(tl.where(equal & before, 1, 0), axis=0) == 0)
    share = tl.max(tl.where(equal, share[:, None], 0), axis=0)
    sibling = tl.sum(tl.where(before & first[:, None], 1, 0), axis=0)
    certain = tl.minimum(matched + depth, LONGEST)
    lookup = tl.where(lane < PLACES, (certain - 1) * RANKS + tl.minimum(sibling, RANKS - 1) + 1, 0)
    feature = tl.where(first, (lookup * (SHARES + 1) + share) * DEPTHS + tl.minimum(depth, DEPTHS - 1), 0)
    tried = tl.load(trials + feature, mask=first, other=1.0)
    edge = tl.load(hits + feature, mask=first, other=0.0) / tried
    edge = edge / tl.maximum(tl.sum(edge, axis=0), 1.0)  # at most one of them comes true
    return child, tl.where(first, edge, 0.0), feature


@triton.jit
def propose(
    state, tokens, finds, successors, shares, hits, trials, spare, parents, depths, features,
    sizes, row_tokens, positions, slots, bases, paths, block_table,
    ROWS: tl.constexpr, MOST: tl.constexpr, DEEPEST: tl.constexpr, CHUNK: tl.constexpr, FINDS: tl.constexpr,
    PLACES: tl.constexpr, LONGEST: tl.constexpr, SUCCESSORS: tl.constexpr, SHARES: tl.constexpr,
    RECYCLED: tl.constexpr, WIDTH: tl.constexpr, RANKS: tl.constexpr, DEPTHS: tl.constexpr,
    BLOCK: tl.constexpr, PATH: tl.constexpr,
):  # fmt: skip
    """The MOST likeliest rows under the root: one after another, the likeliest of all children so far is the next."""
    length, last = tl.load(state + LENGTH), tl.load(state + LAST)
    deepest = tl.minimum(last - length, DEEPEST)
    lane = tl.arange(0, WIDTH)
    # The best places of all chunks.
    end = tl.full([WIDTH], 0, tl.int32)
    matched = tl.full([WIDTH], 0, tl.int32)
    zero = length * 0
    places = zero
    if LONGEST > 0:
        number = tl.arange(0, FINDS)
        found = tl.load(finds + number, mask=number < (length + CHUNK - 1) // CHUNK * PLACES, other=0)
        for place in range(PLACES):
            best = tl.max(found, axis=0)
            end = tl.where(lane == place, best % POSITIONS, end)
            matched = tl.where(lane == place, best // POSITIONS, matched)
            places = places | tl.where(best > 0, 1 << place, 0)
            found = tl.where(found == best, 0, found)
    # Each row's own, and its children's.
    row = tl.arange(0, ROWS)
    root = tl.load(tokens + length)
    token = tl.where(row == 0, root, 0)
    parent = tl.where(row == 0, -1, 0)
    depth = tl.full([ROWS], 0, tl.int32)
    feature = tl.full([ROWS], 0, tl.int32)
    reads = tl.where(row == 0, places, 0)
    ancestors = tl.where(row == 0, 1, 0).to(tl.int64)  # a bit each, the row itself among them
    number = row[:, None] * WIDTH + lane[None, :]
    child, edge, kind = children(
        tokens, successors, shares, hits, trials, end, matched, root, zero, places, length, deepest,
        PLACES, LONGEST, SUCCESSORS, SHARES, RECYCLED, WIDTH, RANKS, DEPTHS,
    )  # fmt: skip
    open_token = tl.where((row == 0)[:, None], child[None, :], 0)
    open_feature = tl.where((row == 0)[:, None], kind[None, :], 0)
    likely = tl.where((row == 0)[:, None], edge[None, :], 0.0)
    count = tl.where(length <= last, 1, 0)
    best = tl.max(likely)
    while (count > 0) & (count < MOST) & (best > 0.0):
        chosen = tl.min(tl.where(likely == best, number, NONE))
        above = chosen // WIDTH
        is_chosen = number == chosen
        new_token = tl.sum(tl.where(is_chosen, open_token, 0))
        new_feature = tl.sum(tl.where(is_chosen, open_feature, 0))
        is_above = row == above
        new_depth = tl.sum(tl.where(is_above, depth, 0), axis=0) + 1
        known = tl.sum(tl.where(is_above, reads, 0), axis=0)
        known_lane = (lane < PLACES) & (((known >> lane) & 1) == 1) & (end + new_depth <= length)
        follows = tl.load(tokens + end + new_depth, mask=known_lane, other=-1) == new_token
        new_reads = tl.sum(tl.where(known_lane & follows, 1 << lane, 0), axis=0)
        history = tl.sum(tl.where(is_above, ancestors, 0), axis=0) | ((zero + 1).to(tl.int64) << count)
        is_new = row == count
        token = tl.where(is_new, new_token, token)
        parent = tl.where(is_new, above, parent)
        depth = tl.where(is_new, new_depth, depth)
        feature = tl.where(is_new, new_feature, feature)
        reads = tl.where(is_new, new_reads, reads)
        ancestors = tl.where(is_new, history, ancestors)
        child, edge, kind = children(
            tokens, successors, shares, hits, trials, end, matched, new_token, new_depth, new_reads, length, deepest,
            PLACES, LONGEST, SUCCESSORS, SHARES, RECYCLED, WIDTH, RANKS, DEPTHS,
        )  # fmt: skip
        likely = tl.where(is_chosen, 0.0, likely)
        likely = tl.where(is_new[:, None], best * edge[None, :], likely)
        open_token = tl.where(is_new[:, None], child[None, :], open_token)
        open_feature = tl.where(is_new[:, None], kind[None, :], open_feature)
        best = tl.max(likely)
        count += 1
    # The inputs of a step. The first row of each depth lies at home, its siblings at spare slots.
    inside = row < count
    equal_depth = (depth[:, None] == depth[None, :]) & (row[None, :] < row[:, None])
    away = tl.where(tl.max(tl.where(equal_depth, 1, 0), axis=1) > 0, 1, 0)
    place = tl.sum(tl.where((row[None, :] < row[:, None]) & (away > 0)[None, :], 1, 0), axis=1)
    position = length + depth
    home = tl.load(block_table + position // BLOCK, mask=inside, other=0) * BLOCK + position % BLOCK
    slot = tl.where(away > 0, tl.load(spare + place, mask=inside & (away > 0), other=0), home)
    tl.store(sizes + tl.arange(0, 2), count)
    tl.store(row_tokens + row, token, mask=inside)
    tl.store(positions + row, position, mask=inside)
    tl.store(slots + row, slot, mask=inside)
    tl.store(bases + row, length + 1, mask=inside)
    under = inside[:, None] & (row > 0)[None, :] & (((ancestors[:, None] >> row[None, :]) & 1) == 1)
    path = paths + row[:, None] * PATH + depth[None, :] - 1
    tl.store(path, slot[None, :] + row[:, None] * 0, mask=under)
    tl.store(parents + row, parent, mask=inside)
    tl.store(depths + row, depth, mask=inside)
    tl.store(features + row, feature, mask=inside)


@triton.jit
def verify(
    state, tokens, hits, trials, parents, depths, features, path, report,
    sizes, row_tokens, slots, block_table, moves, drawn,
    ROWS: tl.constexpr, LARGEST: tl.constexpr, RING: tl.constexpr, BLOCK: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    """Follow the drawn children from the root: the path's tokens are committed, the last one is the next root.

    report  [RING, 2 + 2 LARGEST]: tokens committed, rows, then the path's rows and what they drew: a token, or -1 - t
            where the logit of token t is NaN; the host ends the text there, whatever follows
    path    [ROWS] 1 for a row of the path
    moves   [2, ROWS] the slot from which a row's keys and values move and where to; -1 for none
    """
    count, length, number = tl.load(sizes), tl.load(state + LENGTH), tl.load(state + ROUND)
    row = tl.arange(0, ROWS)
    inside = row < count
    parent = tl.load(parents + row, mask=inside, other=-1)
    token = tl.load(row_tokens + row, mask=inside, other=-1)
    draw = tl.load(drawn + row * STRIDE, mask=inside, other=-1)
    told = report + number % RING * (2 + 2 * LARGEST)
    current = length * 0
    accepted = length * 0
    on_path = row < 0
    going = count > 0
    while going:
        is_current = row == current
        on_path = on_path | is_current
        drew = tl.sum(tl.where(is_current, draw, 0), axis=0)
        choice = tl.where(drew < 0, -1 - drew, drew)
        accepted += 1
        tl.store(tokens + length + accepted, choice)
        tl.store(told + 1 + accepted, current)
        tl.store(told + 1 + LARGEST + accepted, drew)
        current = tl.min(tl.where(inside & (parent == current) & (token == choice), row, NONE), axis=0)
        going = current < NONE
    tl.store(told, accepted)
    tl.store(told + 1, count)
    tl.store(path + row, tl.where(on_path, 1, 0))
    # Children of the path's rows are decided: one came true at most.
    under = (parent[:, None] == row[None, :]) & on_path[None, :]
    decided = inside & (tl.max(tl.where(under, 1, 0), axis=1) > 0)
    feature = tl.load(features + row, mask=decided, other=0)
    tl.atomic_add(trials + feature, 1.0, mask=decided)
    tl.atomic_add(hits + feature, 1.0, mask=decided & on_path)
    position = length + tl.load(depths + row, mask=inside, other=0)
    home = tl.load(block_table + position // BLOCK, mask=on_path, other=0) * BLOCK + position % BLOCK
    slot = tl.load(slots + row, mask=on_path, other=0)
    moved = on_path & (slot != home)
    tl.store(moves + row, tl.where(moved, slot, -1))
    tl.store(moves + ROWS + row, tl.where(moved, home, -1))
    tl.store(state + LENGTH, length + accepted)
    tl.store(state + ROUND, number + 1)


@triton.jit
def remember(
    sizes, row_tokens, path, candidates, logits, bounds, successors, shares,
    ROWS: tl.constexpr, CANDIDATES: tl.constexpr, SUCCESSORS: tl.constexpr, WIDTH: tl.constexpr, SHARES: tl.constexpr,
    BOUNDS: tl.constexpr,
):  # fmt: skip
    """A row's candidates become its token's successors, each with its class of probability among them.

    Of rows that hold one token, one of the path stands for them all, or else the last.
    """
    own, count = tl.program_id(0), tl.load(sizes)
    if own < count:
        row = tl.arange(0, ROWS)
        weight = tl.load(path + row, mask=row < count, other=0) * ROWS + row
        token = tl.load(row_tokens + row, mask=row < count, other=-1)
        mine = tl.load(row_tokens + own)
        stands = tl.max(tl.where(token == mine, weight, -1), axis=0)
        if tl.load(path + own) * ROWS + own == stands:
            lane = tl.arange(0, WIDTH)
            inside = lane < CANDIDATES
            candidate = tl.load(candidates + own * CANDIDATES + lane, mask=inside, other=-1)
            logit = tl.load(logits + own * CANDIDATES + lane, mask=inside, other=float("-inf"))
            share = tl.exp(logit - tl.max(logit, axis=0))
            share = share / tl.sum(share, axis=0)
            number = tl.arange(0, BOUNDS)
            bound = tl.load(bounds + number, mask=number < SHARES - 1, other=float("inf"))
            kind = tl.sum(tl.where(bound[None, :] < share[:, None], 1, 0), axis=1)
            place = mine * SUCCESSORS + lane
            kept = inside & (lane < SUCCESSORS)
            tl.store(successors + place, candidate, mask=kept)
            tl.store(shares + place, kind, mask=kept)


@triton.jit
def commit(moves, cache, first, block, lane, numbers, ROWS: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr):
    """Move what a slot holds, `numbers` of them: number i of slot s lies at first[i] + s // P block[i] + s % P lane[i].

    Rows move from spare slots to homes, so that no program reads what another writes.
    """
    source, target = tl.load(moves + tl.program_id(0)), tl.load(moves + ROWS + tl.program_id(0))
    if source >= 0:
        number = tl.program_id(1) * PART + tl.arange(0, PART)
        inside = number < numbers
        start = tl.load(first + number, mask=inside, other=0)
        per_block, per_lane = (
            tl.load(block + number, mask=inside, other=0),
            tl.load(lane + number, mask=inside, other=0),
        )
        value = tl.load(cache + start + source // BLOCK * per_block + source % BLOCK * per_lane, mask=inside)
        tl.store(cache + start + target // BLOCK * per_block + target % BLOCK * per_lane, value, mask=inside)
