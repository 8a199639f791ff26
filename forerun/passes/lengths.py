"""Positional values must not depend on the length of the sequence: checked by evaluation at several lengths."""

from __future__ import annotations

import torch

from forerun import dims as dimensions
from forerun.ir import Environment, Parameter, SSAValue, backward_slice, run_body, tensor_type
from forerun.passes.base import PassContext, no_weights
from forerun.passes.matching import SEQUENCE
from forerun.passes.sequence_axis import look_ahead

TRIED = (7, 16, 61)
"""Lengths at which a value must be what it is at full length."""


def shorter_lengths(length: int) -> list[int]:
    """The lengths to compare the full one with."""
    return sorted({each for each in (*TRIED, length - 1) if 2 <= each < length})


def evaluate_at(value: SSAValue, length: int, context: PassContext) -> torch.Tensor:
    """A value of `@forward` that needs no tokens, with T = length."""
    values: dict[SSAValue, torch.Tensor] = {}
    environment = Environment(context.weights, bindings={SEQUENCE: length})
    run_body(backward_slice(value), values, environment, keep={value})
    return values[value]


def require_same_at_every_length(value: SSAValue, axis: int | None, length: int, context: PassContext) -> None:
    """Raises LookAheadError if a value changes with the length; along `axis` the shorter must begin the longer.

    Weights without data (a model on the meta device) cannot be evaluated; the check is then left out, and noted.
    """
    body = backward_slice(value)
    if not any(
        dimensions.symbol(dim) == SEQUENCE for each in body for v in each.results for dim in tensor_type(v).dims
    ):
        return
    reads_weights = any(isinstance(each, Parameter) for each in body)
    full = None if reads_weights and context.weights is no_weights else evaluate_at(value, length, context)
    if full is None or full.is_meta:
        context.note("tabulate-positions: weights have no data; tables were not compared at several lengths")
        return
    for each in shorter_lengths(length):
        short = evaluate_at(value, each, context)
        expected = full if axis is None else full.narrow(axis, 0, short.shape[axis])
        same = short.shape == expected.shape and torch.allclose(
            short.double(), expected.double(), rtol=1e-5, atol=1e-6, equal_nan=True
        )
        if not same:
            raise look_ahead(body[-1], "depends on the length of the sequence")
