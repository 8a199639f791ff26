"""A model's shape: the numbers that each part of a decoding step multiplies, reads and sends.

Numbers are counted, not bytes; `Bytes` says how many bytes one takes. Biases, norms, the router and the embedding's
one row are left out: together they are below 1 % of a large model's work.
"""

from __future__ import annotations

from dataclasses import dataclass

from forerun.errors import PlanningError
from forerun.planning.hardware import WIDER
from forerun.planning.reading import Fields, read_fields


@dataclass(frozen=True)
class Attention:
    """The attention of one layer."""

    weights: int
    """Numbers in its projections, before and after; a row multiplies each once."""
    cached: int
    """Numbers that a position leaves in the cache."""
    products: int
    """Multiplications of one row with one cached position, scores and values together."""
    dtype: str
    """What these products are computed in; projections are in the model's dtype."""


@dataclass(frozen=True)
class FeedForward:
    """Feed-forward layers of one kind. A dense layer has one expert, which every row chooses."""

    layers: int
    expert: int
    """Numbers in one expert."""
    count: int = 1
    chosen: int = 1
    """Experts that a row chooses of `count`."""
    shared: int = 0
    """Numbers in what every row passes through besides."""

    @property
    def weights(self) -> int:
        """Numbers in one layer."""
        return self.count * self.expert + self.shared

    @property
    def active(self) -> int:
        """Numbers that one row multiplies in one layer."""
        return self.chosen * self.expert + self.shared

    def read(self, rows: float) -> float:
        """Numbers that one layer reads for `rows` rows, which choose their experts evenly and independently."""
        return self.expert * distinct(self.count, self.chosen, rows) + self.shared


@dataclass(frozen=True)
class Bytes:
    """Bytes of one number."""

    weight: float
    cache: float
    send: float
    """The bytes of an activation on its way to the feed-forward part."""
    receive: float
    """The bytes of an activation on its way back."""


@dataclass(frozen=True)
class Shape:
    """A decoder model as the planner sees it."""

    name: str
    layers: int
    hidden: int
    vocabulary: int
    dtype: str
    """What products are computed in, by the names of a device's FLOP/s."""
    bytes: Bytes
    attention: Attention
    feed_forward: tuple[FeedForward, ...]

    @property
    def head(self) -> int:
        """Numbers in the projection to the vocabulary."""
        return self.vocabulary * self.hidden

    @property
    def attention_bytes(self) -> float:
        """Bytes of weights of the attention part, which holds the embedding and the head too."""
        return self.bytes.weight * (self.layers * self.attention.weights + 2 * self.head)

    @property
    def feed_forward_bytes(self) -> float:
        """Bytes of weights of the feed-forward part."""
        return self.bytes.weight * sum(each.layers * each.weights for each in self.feed_forward)

    @property
    def active(self) -> int:
        """Numbers of the feed-forward part that one row multiplies, over all layers."""
        return sum(each.layers * each.active for each in self.feed_forward)

    def cache_bytes(self, context: float) -> float:
        """Bytes of the cache of one sequence of `context` positions."""
        return self.bytes.cache * self.layers * self.attention.cached * context


def distinct(count: int, chosen: int, times: float) -> float:
    """The expected number of distinct places out of `count` that `times` rows reach, each choosing `chosen` evenly."""
    return count * (1 - (1 - chosen / count) ** times)


def read_shape(file: str) -> Shape:
    """Reads a model's shape from a YAML file (docs/planning.md). Raises `PlanningError`, and OSError."""
    fields = read_fields(file)
    hidden, layers = fields.count("hidden"), fields.count("layers")
    dtype = _dtype(fields)
    sizes = fields.inner("bytes")
    shape = Shape(
        fields.text("name"),
        layers,
        hidden,
        fields.count("vocabulary"),
        dtype,
        Bytes(*(sizes.number(name) for name in ("weight", "cache", "send", "receive"))),
        _attention(fields.inner("attention"), hidden, dtype),
        _feed_forward(fields.inner("ffn"), hidden),
    )
    sizes.end()
    fields.end()
    counted = sum(each.layers for each in shape.feed_forward)
    if counted != layers:
        raise PlanningError(f"{file} has {layers} layers, but its ffn has {counted}: make them the same number.")
    return shape


def _dtype(fields: Fields, default: str | None = None) -> str:
    dtype = fields.text("dtype", default)
    if dtype not in WIDER:
        raise PlanningError(f"{fields.place}: there is no dtype {dtype!r}: give one of {', '.join(WIDER)}.")
    return dtype


def _attention(fields: Fields, hidden: int, dtype: str) -> Attention:
    """Counts grouped-query attention, or latent attention if a `latent_dim` is given.

    Latent attention (MLA, DeepSeek-V2, arXiv 2405.04434) decodes with the key and value matrices absorbed: scores over
    the latent and the rotary part, values over the latent. `query_rank` is the bottleneck of a query in two factors,
    as in MLA and in multi-matrix factorization attention (MFA, arXiv 2412.19255).
    """
    heads = fields.count("heads")
    if "latent_dim" in fields:
        rank, rotary = fields.count("latent_dim"), fields.count("rotary_dim", least=0)
        head, value = fields.count("head_dim"), fields.count("value_dim")
        query = heads * (head + rotary)
        result = heads * value
        key_weights = hidden * (rank + rotary) + heads * rank * (head + value)
        cached, products = rank + rotary, heads * (2 * rank + rotary)
    else:
        grouped, head = fields.count("kv_heads"), fields.count("head_dim")
        if heads % grouped:
            raise PlanningError(f"{fields.place}: {heads} heads cannot share {grouped} kv_heads: give a divisor.")
        query = result = heads * head
        cached = 2 * grouped * head
        key_weights, products = hidden * cached, 2 * heads * head
    query_weights = hidden * query
    if "query_rank" in fields:
        query_weights = fields.count("query_rank") * (hidden + query)
    own = _dtype(fields, dtype)
    fields.end()
    return Attention(query_weights + key_weights + result * hidden, cached, products, own)


def _feed_forward(fields: Fields, hidden: int) -> tuple[FeedForward, ...]:
    matrices = fields.count("matrices", 3)
    found: list[FeedForward] = []
    if "dense" in fields:
        dense = fields.inner("dense")
        found.append(FeedForward(dense.count("layers"), matrices * hidden * dense.count("width")))
        dense.end()
    if "experts" in fields:
        given = fields.inner("experts")
        count, chosen, width = given.count("count"), given.count("chosen"), given.count("width")
        if chosen > count:
            raise PlanningError(f"{given.place}: a row cannot choose {chosen} of {count} experts: correct chosen.")
        shared = given.count("shared", 0, least=0) * given.count("shared_width", width)
        layers = given.count("layers")
        found.append(FeedForward(layers, matrices * hidden * width, count, chosen, matrices * hidden * shared))
        given.end()
    fields.end()
    if not found:
        raise PlanningError(f"{fields.place} has neither dense nor experts: add one of them, or both.")
    return tuple(found)
