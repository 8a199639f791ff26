"""A model over several processes: some hold the attention part of each step, others the feed-forward part.

    torchrun --nproc-per-node 4 -m forerun.distributed generate --attention 2 --ffn 2 MODEL --prompt ...

From Python, all processes of a group call `forerun.distributed.join`; the first one gets a `CompiledModel`.
"""

from forerun.distributed.joining import join
from forerun.distributed.layout import Layout

__all__ = ["Layout", "join"]
