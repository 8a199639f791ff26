"""The residual branches of a step, grouped by layer."""

from collections.abc import Callable

from forerun.errors import InvalidOptionError
from forerun.runtime.drafters.self_draft import require_branches
from forerun.runtime.executable import Executable

DEEPEST = 1000
"""The most layers that an error asks for."""


def layer_branches(executable: Executable) -> list[tuple[int, ...]]:
    """Returns the branches of each layer, in order. Raises `InvalidOptionError` for a model without branches."""
    require_branches(executable)
    layers: dict[int, list[int]] = {}
    for number, branch in enumerate(executable.branches):
        layers.setdefault(branch.layer, []).append(number)
    return [tuple(own) for own in layers.values()]


def branch_behind(layers: list[tuple[int, ...]], count: int) -> int:
    """Returns the number of branches in the first `count` layers. Raises `InvalidOptionError` for a wrong count."""
    if not 0 < count <= len(layers):
        raise InvalidOptionError(f"the model has {len(layers)} layers, so a draft cannot end after layer {count}")
    return layers[count - 1][-1] + 1


def too_shallow(method: str, share: float, layers: int, enough: Callable[[int], bool]) -> InvalidOptionError:
    """Returns the error for a model with too few layers for a method; it names the fewest that are enough."""
    least = next((depth for depth in range(layers + 1, DEEPEST + 1) if enough(depth)), None)
    needed = f"more than {DEEPEST}" if least is None else f"at least {least}"
    return InvalidOptionError(
        f"{method}, which skips a share of {share}, needs a model of {needed} layers; this one has {layers}: use "
        "another strategy or share"
    )
