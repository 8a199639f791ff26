"""The weights of a model under their fully qualified names, shared and never duplicated."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from forerun.errors import InvalidOptionError, NotAModelError


def module_weights(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name; tied weights appear under each of their names as one tensor."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach() for name, tensor in named}


def program_weights(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    """Every tensor that the program's inputs lift: parameters, buffers and the constants its trace found."""
    constants = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
    return {name: tensor.detach() for name, tensor in {**constants, **program.state_dict}.items()}


class OnDemand(Mapping[str, Tensor]):
    """Tensors by name, each made when it is read, and not kept."""

    def __init__(self, make: Mapping[str, Callable[[], Tensor]]) -> None:
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        return self._make[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._make  # a Mapping's own method would make the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor is more than a shape and a dtype."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def without_values(module: nn.Module, names: Collection[str]) -> None:
    """Replaces these parameters by fake tensors, which can be traced and take no memory; tied ones stay tied."""
    mode, made = FakeTensorMode(allow_non_fake_inputs=True), dict[int, nn.Parameter]()
    parameters = {name: each for name, each in module.named_parameters(remove_duplicate=False) if name in names}
    for name, each in parameters.items():
        if id(each) not in made:
            with mode:
                shape = torch.empty(each.shape, dtype=each.dtype)
            made[id(each)] = nn.Parameter(shape, requires_grad=False)
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, made[id(each)])


def private_copy(module: nn.Module, dtype: torch.dtype, name: str) -> nn.Module:
    """The same module structure over the same tensors, cast if they are not of `dtype`.

    Changing the copy's structure, configuration or mode leaves the original as it was. Floating parameters and
    persistent buffers are cast; buffers that are not saved (rotary frequencies, say) keep their precision, as they do
    when transformers loads a checkpoint.
    """
    persistent = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
    shared: dict[int, Tensor] = {}
    for parameter in module.parameters():
        shared[id(parameter)] = _cast_parameter(parameter, dtype)
    for buffer in module.buffers():
        shared[id(buffer)] = _cast(buffer, dtype) if id(buffer) in persistent else buffer
    try:
        return copy.deepcopy(module, {**shared})
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise NotAModelError(
            f"{name} cannot be copied ({reason}), and forerun does not change a model it was given: "
            f"pass a module whose attributes support copy.deepcopy, or an ExportedProgram."
        ) from error


def floating_dtypes(weights: Mapping[str, Tensor]) -> set[torch.dtype]:
    """The floating-point dtypes among the weights."""
    return {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}


def require_dtype(name: str, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Raises `InvalidOptionError` for a program that was exported in another dtype."""
    found = floating_dtypes(weights)
    if found and dtype not in found:
        names = ", ".join(sorted(str(each).removeprefix("torch.") for each in found))
        asked = str(dtype).removeprefix("torch.")
        raise InvalidOptionError(
            f"the {name}'s weights are {names}, but it cannot be read as {asked}: export the model again in {asked}."
        )


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype) if tensor.is_floating_point() and tensor.dtype != dtype else tensor


def _cast_parameter(parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    tensor = _cast(parameter, dtype)
    return parameter if tensor is parameter else nn.Parameter(tensor, requires_grad=False)
