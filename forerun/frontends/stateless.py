"""Checks that a model's forward pass keeps no state: once compiled, a state would stay as it was traced."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from forerun.errors import TraceError
from forerun.frontends.quiet import quiet_libraries
from forerun.frontends.weights import has_values

EXAMPLE = (1, 2, 1)


def require_stateless(module: nn.Module, name: str) -> None:
    """Raise TraceError for a model that gives other logits, or changes what it keeps, when it is called once more.

    Two calls on a copy that shares the parameters are compared; a value that is computed once (a table that grows
    on demand) is not a state. A call that fails here will fail, and be explained, when the model is traced; so will a
    model that samples, whose calls agree if they start from the same random numbers. The caller's random state is kept.
    A model whose weights have no values is not called.
    """
    tensors = [*module.parameters(), *module.buffers()]
    if not all(map(has_values, tensors)):
        return
    trial = copy.deepcopy(module, {id(each): each for each in module.parameters()})
    tokens = torch.tensor([EXAMPLE], device=tensors[0].device if tensors else None)
    random, samples = torch.get_rng_state(), False
    try:
        with torch.no_grad(), quiet_libraries():
            first = trial(tokens)
            before = {key: _copied(value) for key, value in _kept(trial)}
            second = trial(tokens)
            if samples := not torch.equal(random, torch.get_rng_state()):
                torch.set_rng_state(random)
                first = trial(tokens)
                torch.set_rng_state(random)
                second = trial(tokens)
    except Exception:
        return
    finally:
        if samples:
            torch.set_rng_state(random)
    changed = [key for key, value in _kept(trial) if key in before and not _same(before[key], value)]
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4, equal_nan=True):
        cause = f" (its state {changed[0]} changes)" if changed else ""
        raise TraceError(
            f"{name} gives different logits when it is called again{cause}: compile a forward pass that depends on "
            f"input_ids alone."
        )
    buffers = [key for key in changed if isinstance(before[key], Tensor)]
    if buffers:
        raise TraceError(
            f"{name} changes its state {buffers[0]} as it runs, which would not change once compiled: write a forward "
            f"pass without state."
        )


def _kept(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Buffers, and tensors and numbers among the attributes of submodules, by name."""
    yield from module.named_buffers()
    for prefix, each in module.named_modules():
        for key, value in vars(each).items():
            if isinstance(value, Tensor | int | float):
                yield f"{prefix}.{key}".lstrip("."), value


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before.shape != after.shape or torch.equal(before, after) or bool(before.isnan().any())
    return before == after
