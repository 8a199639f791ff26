"""The residual branches of a step, grouped by layer."""

from forerun.errors import InvalidOptionError
from forerun.runtime.drafters.self_draft import require_branches
from forerun.runtime.executable import Executable


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
