"""Joining a group of processes: each compiles its part of the model, and all must have been given the same."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from socket import gethostname
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist

from forerun import __version__
from forerun.build import OPENING, Lowered, Opening, generate_code, lower, warn_of_length
from forerun.compile_options import check_options, require_threads, resolve_arithmetic
from forerun.cores import thread_count
from forerun.distributed.driver import Driver
from forerun.distributed.layout import AUTO, Layout
from forerun.distributed.measuring import measure
from forerun.distributed.member import Member, largest_payload, payloads
from forerun.distributed.wire import PATIENCE, Wire
from forerun.errors import DistributedError, InvalidOptionError, first_sentence
from forerun.execute.tvm.executable import TvmExecutable
from forerun.ir import Context, ModuleOp, print_ir
from forerun.passes.base import Pass
from forerun.passes.disaggregate import ATTENTION_PART, FFN_PART, Disaggregate
from forerun.passes.split_outputs import SplitOutputs
from forerun.progress import Progress, SilentProgress, open_progress
from forerun.runtime.engine import Engine
from forerun.runtime.model import CompiledModel, Origin, source_name
from forerun.runtime.options import dtype_name
from forerun.schedules import measure_cost, model_of
from forerun.strategies import Strategy, Target, draft_sources, resolve_strategy

TARGET, MACHINE = "cpu", "machine"
T = TypeVar("T")


@contextmanager
def join(
    source: Any,
    layout: Layout,
    strategy: str | Strategy = "tree_spec",
    dtype: Any = "float32",
    max_length: int | None = None,
    progress: Progress | None = None,
    opening: Opening = OPENING,
    arithmetic: str = "auto",
    threads: int | None = None,
    group: dist.ProcessGroup | None = None,
    patience: float = PATIENCE,
) -> Generator[CompiledModel | None]:
    """Yields a compiled model on the first rank of a group; the others serve it, and get None when it is done with.

    Every rank of the group calls this with the same arguments, those of `forerun.compile`; the threads of a step are by
    default this rank's share of its machine's cores. The bits are those of one process.

    patience    seconds after which a rank that sends no payload, or receives none, counts as lost

    Raises `DistributedError` if the ranks do not fit together, or one of them is lost.
    """
    chosen, dtype = resolve_strategy(strategy), dtype_name(dtype)
    check_options([source, *draft_sources(chosen.drafters)], dtype, TARGET, max_length)
    arithmetic, threads = resolve_arithmetic(arithmetic, TARGET, dtype), require_threads(TARGET, threads)
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    if layout.world != world:
        raise InvalidOptionError(
            f"{layout.attention} attention ranks and {layout.ffn} feed-forward ranks are {layout.world}, and the group "
            f"has {world}: start {layout.world} processes."
        )
    progress = (progress or open_progress()) if rank == 0 else SilentProgress()
    step = StepDigest()
    passes = [step, *part_passes(layout, rank)]
    lowered = lower(source, dtype, max_length, progress=progress, draft=passes, opening=opening, arithmetic=arithmetic)
    if rank == 0:
        warn_of_length(lowered.capped)
    described = description(lowered, layout, dtype, arithmetic, step.found)
    neighbours = _require_alike(layout, described, group)
    threads = thread_count(threads, neighbours)
    executable = generate_code(lowered, TARGET, progress, dtype, threads)
    assert isinstance(executable, TvmExecutable)
    told = _gathered(layout, (largest_payload(executable), payloads(executable)), group)
    member = Member(executable, Wire(layout, max(largest for largest, _ in told), group, patience))
    if rank:
        member.serve()
        yield None
        return
    with Driver(member, [each for _, each in told]) as driver:
        engine = Engine(driver)
        if layout.groups == AUTO:
            driver.measured = measure(driver, engine, progress)
        cost = measure_cost(engine, progress) if chosen.needs_cost else None
        target = Target(engine, cost, lowered.source.tokenizer, progress, threads)
        origin = Origin(source_name(source), TARGET, dtype)
        yield model_of(chosen, target, lowered.source.eos_token_ids, origin, defaults=lowered.source.defaults)


def part_passes(layout: Layout, rank: int) -> list[Pass]:
    """The passes that leave a rank its part of the step."""
    if layout.attends(rank):
        return [Disaggregate(ATTENTION_PART)]
    split = [SplitOutputs(ranks=layout.ffn, rank=rank - layout.attention)] if layout.ffn > 1 else []
    return [Disaggregate(FFN_PART), *split]


@dataclass(frozen=True)
class StepDigest(Pass):
    """Changes nothing, and finds a digest of the step before it is cut, which all ranks must share."""

    name: ClassVar[str] = "step-digest"

    found: list[str] = field(default_factory=list[str])

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        self.found.append(hashlib.sha256(print_ir(op).encode()).hexdigest())


def description(lowered: Lowered, layout: Layout, dtype: str, arithmetic: str, step: Sequence[str]) -> dict[str, str]:
    """Returns what must be the same on all ranks, and the name of this rank's machine."""
    return {
        "forerun": __version__,
        "layout": str(layout),
        "model": _digest(lowered),
        "step": " ".join(step),
        "arithmetic": arithmetic,
        "dtype": dtype,
        "positions": str(lowered.max_length),
        MACHINE: gethostname(),
    }


def _digest(lowered: Lowered) -> str:
    """A digest of all weights of the model, those of the other part too."""
    digest = hashlib.sha256()
    for name in sorted(lowered.stored):
        tensor = lowered.stored[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _require_alike(layout: Layout, said: Mapping[str, str], group: dist.ProcessGroup | None) -> int:
    """Raises `DistributedError` unless all ranks say the same of themselves. Returns how many run on this machine."""
    heard = _gathered(layout, dict(said), group)
    for rank, other in enumerate(heard):
        for name, value in heard[0].items():
            if name != MACHINE and other.get(name) != value:
                raise DistributedError(
                    f"{layout.named(rank)} has another {name} than rank 0 ({other.get(name)}, not {value}): start all "
                    "ranks with the same forerun, model and options."
                )
    return sum(other.get(MACHINE) == said[MACHINE] for other in heard)


def _gathered(layout: Layout, value: T, group: dist.ProcessGroup | None) -> list[T]:
    """What each rank gives, on all of them."""
    found: list[Any] = [None] * layout.world
    try:
        dist.all_gather_object(found, value, group=group)
    except RuntimeError as error:
        raise DistributedError(
            f"a rank ended before all were ready ({first_sentence(error)}): look at what it has printed, and start all "
            "ranks again."
        ) from error
    return found
