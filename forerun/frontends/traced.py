"""Models that torch.export traces, or has traced: the importer of modules, directories and GGUF files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor
from torch.export import ExportedProgram

from forerun.errors import TraceError, UnsupportedOperationError
from forerun.frontends.cached_step import CACHED, OpenedStep, is_step, open_step
from forerun.frontends.forward import FORWARD
from forerun.frontends.importer import Imported
from forerun.frontends.torch_export import import_programs
from forerun.frontends.tracing import TokenLogits, check_program, trace_module
from forerun.frontends.weights import OnDemand, module_weights, program_weights
from forerun.ir import verify
from forerun.progress import Progress


@dataclass(frozen=True)
class TracedModel:
    """A module that is traced when it is imported, or a program that has been traced."""

    name: str
    model: TokenLogits | ExportedProgram
    progress: Progress = field(repr=False, compare=False)
    values: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)
    """The weights of which the module has no values, under their names in a traced program."""
    _programs: dict[int, ExportedProgram] = field(default_factory=dict, repr=False, compare=False)

    def import_(self, max_length: int) -> Imported:
        """Traces and imports the model: see `Importer`. Raises `TraceError` or `UnsupportedOperationError`.

        A model whose cache holds recurrent states is traced as one cached step; any other as a forward pass over T
        positions, or as such a step if that fails.
        """
        step = self._cached_step()
        if step is not None and step.is_recurrent:
            return self._import(CACHED, lambda: step.trace(self.name, max_length))
        try:
            return self._import(FORWARD, lambda: self.trace(max_length))
        except (TraceError, UnsupportedOperationError) as error:
            if step is None:
                raise
            try:
                return self._import(CACHED, lambda: step.trace(self.name, max_length))
            except (TraceError, UnsupportedOperationError):
                raise error from None

    def _cached_step(self) -> OpenedStep | None:
        """The model's step over one token, or None if it has none: then only its forward pass can be traced."""
        if not isinstance(self.model, TokenLogits) or self.values is not None:
            return None
        if is_step(self.model.model):
            return open_step(self.model.model)
        try:
            return open_step(self.model.model)
        except TraceError:
            return None

    def _import(self, function: str, trace: Callable[[], ExportedProgram]) -> Imported:
        with self.progress.stage("trace"):
            program = trace()
        with self.progress.stage("import"):
            module, weights = import_programs({function: program})
            verify(module)
        return module, self._with_values(weights)

    def trace(self, max_length: int) -> ExportedProgram:
        """Returns the model as `input_ids[1, T] -> logits[1, T, V]` for every T up to `max_length`; traced once."""
        if max_length not in self._programs:
            self._programs[max_length] = self._trace(max_length)
        return self._programs[max_length]

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Parameters and buffers under the names that a traced program gives them, sharing the model's memory.

        Constants that only a trace finds are in `program_weights(self.trace(max_length))`.
        """
        if isinstance(self.model, ExportedProgram):
            return program_weights(self.model)
        return self._with_values(module_weights(self.model))

    def _with_values(self, found: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights, those without values replaced by `values`."""
        if self.values is None:
            return found
        readers: dict[str, Callable[[], Tensor]] = {}
        for name in found:
            readers[name] = partial((self.values if name in self.values else found).__getitem__, name)
        return OnDemand(readers)

    def _trace(self, max_length: int) -> ExportedProgram:
        if isinstance(self.model, ExportedProgram):
            check_program(self.model, self.name, max_length)
            return self.model
        return trace_module(self.model, self.name, max_length)
