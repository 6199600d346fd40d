"""Which collective a process waited in, by the frames of the error that ended it: torch's messages do not say."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from types import FrameType

from torch._C._distributed_c10d import OpType  # type: ignore[attr-defined]
from torch.distributed import Work, distributed_c10d

# Where DistributedDataParallel waits outside of Python.
_OF_GRADIENTS = {
    ("torch.autograd.graph", "_engine_run_backward"): "all_reduce of gradients",
    ("torch.nn.parallel.distributed", "_pre_forward"): "broadcast of the order of gradients",
}


def failed_collective(error: BaseException) -> str | None:
    """What the others were waited for in, such as ``all_reduce`` or ``ReduceScatterBase``; None where nothing tells."""
    for frame in reversed([frame for frame, _ in traceback.walk_tb(error.__traceback__)]):
        module, function = str(frame.f_globals.get("__name__")), frame.f_code.co_name
        if module == distributed_c10d.__name__ and function in distributed_c10d.__all__:
            return function
        if module.startswith("torchrec."):
            for work in _awaited(frame):
                return _kind(work, frame)
        if (module, function) in _OF_GRADIENTS:
            return _OF_GRADIENTS[module, function]
    return None


def _awaited(frame: FrameType) -> Iterator[Work]:
    """Messages that a frame knows: its variables, or members of one."""
    for value in frame.f_locals.values():
        # Not isinstance: it asks an object for its class, and some of torch's answer with a warning.
        yield from (each for each in (value, *getattr(value, "__dict__", {}).values()) if issubclass(type(each), Work))


def _kind(work: Work, frame: FrameType) -> str:
    kind: str = OpType(work._get_op_type()).name  # type: ignore[attr-defined]  # noqa: SLF001
    if kind == "UNKNOWN":  # gloo does not say of all; torchrec's classes are called by what they wait for
        waiting = frame.f_locals.get("self", frame.f_locals.get("ctx"))
        return re.split("Awaitable|_Wait|_Req", type(waiting).__name__)[0]
    return kind.lower().strip("_").removesuffix("_base")
