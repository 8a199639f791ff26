# pyright: basic, reportGeneralTypeIssues=false
"""Functions that generated kernels call: each kernel's file gets a copy of those it uses, so that it stands alone.

This file is read as text, never imported by forerun. Sums over lanes are trees whose shape depends on the number of
lanes alone; Triton's own reductions follow the layout, which follows the number of warps. `exp` is `tl.exp`, one
multiplication and one `ex2` instruction, everywhere; what is made of it is written out here: no library decides.
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
def expm1(x):
    """e^x - 1, through a series near 0."""
    series = tl.fma(x, 1.0 / 362880, 1.0 / 40320)
    series = tl.fma(x, series, 1.0 / 5040)
    series = tl.fma(x, series, 1.0 / 720)
    series = tl.fma(x, series, 1.0 / 120)
    series = tl.fma(x, series, 1.0 / 24)
    series = tl.fma(x, series, 1.0 / 6)
    series = tl.fma(x, series, 0.5)
    series = tl.fma(x, series, 1.0)
    return tl.where(tl.abs(x) < 0.3, series * x, tl.exp(x) - 1.0)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(0.0 - x))


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(0.0 - x))


@triton.jit
def tanh(x):
    """Through expm1(-2|x|), which is accurate near 0."""
    e = expm1(tl.abs(x) * -2.0)
    magnitude = (0.0 - e) / (e + 2.0)
    return tl.where(x < 0.0, 0.0 - magnitude, magnitude)


@triton.jit
def erf(x):
    """The error function: an odd polynomial inside 475/512, 1 - exp(polynomial) outside (after N. Juffa)."""
    t = tl.abs(x)
    s = x * x
    outer = tl.fma(
        tl.fma(t, -1.72853470e-5, 3.83197126e-4),
        s,
        tl.fma(t, -3.88396438e-3, 2.42546219e-2),
    )
    outer = tl.fma(outer, t, -1.06777877e-1)
    outer = tl.fma(outer, t, -6.34846687e-1)
    outer = tl.fma(outer, t, -1.28717512e-1)
    outer = 1.0 - tl.exp(tl.fma(outer, t, 0.0 - t))
    outer = tl.where(x < 0.0, 0.0 - outer, outer)
    inner = tl.fma(s, -5.96761703e-4, 4.99119423e-3)
    inner = tl.fma(inner, s, -2.67681349e-2)
    inner = tl.fma(inner, s, 1.12819925e-1)
    inner = tl.fma(inner, s, -3.76125336e-1)
    inner = tl.fma(inner, s, 1.28379166e-1)
    return tl.where(t > 0.927734375, outer, tl.fma(inner, x, x))


@triton.jit
def gelu(x):
    """x/2 (1 + erf(x / sqrt 2))."""
    return x * 0.5 * (1.0 + erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return x * 0.5 * (1.0 + tanh(tl.fma(x * x * 0.044715, x, x) * 0.7978845608028654))


@triton.jit
def log1p(x):
    """log(1 + x) with the rounding of 1 + x divided out (W. Kahan)."""
    u = 1.0 + x
    d = u - 1.0
    return tl.where(d == 0.0, x, tl.log(u) * (x / tl.where(d == 0.0, 1.0, d)))


@triton.jit
def softplus(x):
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|)."""
    return tl.maximum(x, 0.0) + log1p(tl.exp(0.0 - tl.abs(x)))


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
def within(index, SIZE: tl.constexpr):
    """An index of an axis: a negative one counts from the end, and what lies outside then is moved to the rim."""
    index = tl.where(index < 0, index + SIZE, index)
    return tl.minimum(tl.maximum(index, 0), SIZE - 1)


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
