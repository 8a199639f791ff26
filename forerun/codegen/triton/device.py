# pyright: basic, reportGeneralTypeIssues=false
"""Functions that generated kernels call: each kernel's file gets a copy of those it uses, so that it stands alone.

This file is read as text, never imported by forerun. Sums over lanes are trees whose shape depends on the number of
lanes alone; Triton's own reductions follow the layout, which follows the number of warps. `exp` is `tl.exp`, one
multiplication and one `ex2` instruction, everywhere.
"""

import triton
import triton.language as tl


@triton.jit
def row_sum(x, ROWS: tl.constexpr, LANES: tl.constexpr, LEVELS: tl.constexpr):
    """The sums [ROWS, 1] of x [ROWS, LANES = 2 ** LEVELS]: neighbours are added, then their neighbours."""
    for level in tl.static_range(LEVELS):
        left, right = tl.split(tl.reshape(x, [ROWS, LANES >> (level + 1), 2]))
        x = left + right
    return tl.reshape(x, [ROWS, 1])


@triton.jit
def round_even(x):
    """To the nearest integer, ties to even: adding 1.5 * 2^23 leaves no fraction; numbers that large have none."""
    shifted = (x + 12582912.0) - 12582912.0
    return tl.where(tl.abs(x) < 4194304.0, shifted, x)


@triton.jit
def floor_divide(x, y):
    """The floor of a quotient of integers; Triton's own truncates."""
    quotient = x // y
    return quotient - tl.where((x % y != 0) & ((x < 0) != (y < 0)), 1, 0)


@triton.jit
def floor_modulo(x, y):
    """The remainder that has the divisor's sign."""
    rest = x % y
    return rest + tl.where((rest != 0) & ((x < 0) != (y < 0)), y, 0)


@triton.jit
def keep_largest(values, ids, free, row_in, to_values, to_ids, K: tl.constexpr, STRIDE: tl.constexpr):
    """The K largest free lanes of each row, in descending order and the lowest id first on ties; `STRIDE` apart."""
    for number in range(K):
        best = tl.max(tl.where(free, values, float("-inf")), axis=1, keep_dims=True)
        chosen = tl.min(tl.where(free & (values == best), ids, 2147483647), axis=1, keep_dims=True)
        tl.store(to_values + number * STRIDE, best, mask=row_in)
        tl.store(to_ids + number * STRIDE, chosen, mask=row_in)
        free = free & (ids != chosen)


@triton.jit
def load_words(pointer, mask):
    """64 bits that lie in two int32 words, the lower half first."""
    low = tl.load(pointer, mask=mask, other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(pointer + 1, mask=mask, other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
    return (high << 32) | low


@triton.jit
def uniform(bits):
    """64 random bits as a double in [0, 1), as numpy makes them."""
    return (bits >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def philox(counter, position, seed, identifier):
    """Four times 64 bits of the Philox 4x64-10 stream with key (seed, identifier) at (counter, 0, position, 0).

    After J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """
    zero = (counter + position) * 0
    a, b, c, d = counter + zero, zero, position + zero, zero
    for _ in tl.static_range(10):
        high_a, low_a = tl.umulhi(a, 0xD2E7470EE14C6C93), a * 0xD2E7470EE14C6C93
        high_c, low_c = tl.umulhi(c, 0xCA5A826395121157), c * 0xCA5A826395121157
        a, b, c, d = high_c ^ b ^ seed, low_c, high_a ^ d ^ identifier, low_a
        seed += 0x9E3779B97F4A7C15
        identifier += 0xBB67AE8584CAA73B
    return a, b, c, d


@triton.jit
def random_tile(first, position, seed, identifier, BLOCK: tl.constexpr):
    """The uniform numbers [ROWS, BLOCK] of the tokens first, first + 1, ...: `first` and `BLOCK` are multiples of 4.

    Four neighbours share a counter; numpy counts from 1.
    """
    counter = (first // 4 + 1 + tl.arange(0, BLOCK // 4)[None, :]).to(tl.uint64)
    a, b, c, d = philox(counter, position, seed, identifier)
    joined = tl.join(tl.join(uniform(a), uniform(c)), tl.join(uniform(b), uniform(d)))
    return tl.reshape(joined, [a.shape[0], BLOCK])


@triton.jit
def keep_drawn(
    values, ids, free, row, row_in, first, draws, positions, outputs, to_scores, to_tokens, BLOCK: tl.constexpr
):
    """The best of each row's values / temperature + Gumbel noise, and its token; of equals the lowest.

    A row's noise is that of the position behind its own (`runtime.sampling`).
    """
    draw = draws + row * 6
    seed, identifier = load_words(draw, row_in), load_words(draw + 2, row_in)
    temperature = load_words(draw + 4, row_in).to(tl.float64, bitcast=True)
    temperature = tl.where(temperature > 0.0, temperature, 1.0)
    output = tl.load(outputs + row, mask=row_in, other=0)
    position = (tl.load(positions + output, mask=row_in, other=0) + 1).to(tl.uint64)
    random = random_tile(first, position, seed, identifier, BLOCK)
    noise = 0.0 - tl.log(0.0 - tl.log(random))
    scores = values.to(tl.float64) / temperature + noise
    scores = tl.where(free & (scores == scores), scores, float("-inf"))
    best = tl.max(scores, axis=1, keep_dims=True)
    chosen = tl.min(tl.where(free & (scores == best), ids, 2147483647), axis=1, keep_dims=True)
    tl.store(to_scores, best, mask=row_in)
    tl.store(to_tokens, chosen, mask=row_in)
