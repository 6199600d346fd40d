"""Gradients of dense parameters, summed over all processes while the backward pass is still under way."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rookery.parallel.world import own_group, world_size


class SummedGradients:
    """Calls ``module``, whose parameters then get the gradient of the sum of every process's loss.

    Parameters begin alike everywhere, and so stay alike. They are reduced in a group of their own: the order of these
    messages among those of tables does not matter. In a world of one process this is the module itself.
    """

    def __init__(self, module: Callable[[Any], Any]) -> None:
        self._module = module
        self._parallel: DistributedDataParallel | None = None
        if world_size() > 1 and _learns(module):
            assert isinstance(module, nn.Module)
            # Said of a dimension of size 1, whose stride means nothing.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
            group = own_group()
            self._parallel = DistributedDataParallel(
                module, process_group=group, forward_sync_buffers=False, init_sync=False, gradient_as_bucket_view=True
            )
            # A lambda: it refuses annotations that are not evaluated.
            self._parallel.register_comm_hook(group, lambda group, bucket: _sum(group, bucket))  # noqa: PLW0108

    def __call__(self, batch: Any) -> Any:
        return self._module(batch) if self._parallel is None else self._parallel(batch)

    def collecting(self, wanted: bool) -> AbstractContextManager[None]:
        """Within, where ``wanted``, gradients are only added up in this process: forward and backward pass of every
        micro-batch of a step but the last.
        """
        if wanted and self._parallel is not None:
            return self._parallel.no_sync()
        return nullcontext()


def _learns(module: object) -> bool:
    return isinstance(module, nn.Module) and any(parameter.requires_grad for parameter in module.parameters())


def _sum(group: dist.ProcessGroup, bucket: Any) -> Any:
    """What torch does by itself with a ``GradBucket``, without the division by the number of processes."""
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])
