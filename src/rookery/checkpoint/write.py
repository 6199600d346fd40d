"""The one writer of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from rookery.checkpoint.draft import Draft
from rookery.checkpoint.files import TENSORS, State
from rookery.checkpoint.shards import Groups, held_of
from rookery.errors import CheckpointError, PeerFailed
from rookery.parallel.world import is_chief, world_size


def write_checkpoint(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: State) -> None:
    """Write a checkpoint so that ``folder`` is whole or absent, whenever a process or the machine stops.

    Everything is written beside, forced to disk, then renamed; a predecessor of the same name is replaced. Of several
    processes all call this with the same groups: each writes its shards of a ``ShardedTensor``, the lowest that has it
    a plain tensor, and the chief its ``state``. Raises ``CheckpointError`` when the disk refuses, the same on all
    processes, and ``PeerFailed`` when one of them is gone.
    """
    write_groups(folder, step, held_of(tensors), state)


def write_groups(
    folder: Path, step: int, groups: Groups, state: State, process_group: dist.ProcessGroup | None = None
) -> None:
    """``write_checkpoint`` of what is held; the processes talk through ``process_group``, None for that of all."""
    draft = Draft(folder, step, state)
    try:
        if world_size() == 1:
            _write_alone(draft, groups)
            return
        # Half a second that a process alone does not wait for.
        from rookery.checkpoint.collective import write_together

        write_together(draft, groups, process_group)
    except (OSError, SafetensorError) as error:
        _discard(draft)
        raise CheckpointError(
            f"{folder}: the checkpoint of step {step} could not be written ({error}); earlier ones are untouched: "
            "make room or permission there and start again"
        ) from error
    except PeerFailed:
        _discard(draft)
        raise


def _write_alone(draft: Draft, groups: Groups) -> None:
    draft.begin()
    files = {
        f"{group}{TENSORS}": {name: shards.whole() for name, shards in named.items()} for group, named in groups.items()
    }
    draft.publish({file: draft.write(file, tensors) for file, tensors in files.items()})


def _discard(draft: Draft) -> None:
    if is_chief():
        draft.discard()
