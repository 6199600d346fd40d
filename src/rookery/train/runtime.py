"""The machine made ready: device, threads, seed and number formats."""

from __future__ import annotations

import ctypes
import sys

import pyarrow as pa
import torch

from rookery.errors import ConfigError
from rookery.parallel.world import local_rank, local_world_size
from rookery.train.config import RuntimeConfig

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_NEVER_BYTES = 1 << 30


def prepare_runtime(config: RuntimeConfig) -> torch.device:
    """Set threads, seed and TensorFloat32 of this process and return the device to train on.

    Raises ``ConfigError`` for a device that this machine does not have.
    """
    device = _own_device(choose_device(config.device))
    keep_freed_memory()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    torch.backends.cuda.matmul.allow_tf32 = config.enable_tensorfloat32
    torch.backends.cudnn.allow_tf32 = config.enable_tensorfloat32
    return device


def _own_device(device: torch.device) -> torch.device:
    """Of several processes on a machine each has a CUDA device of its own."""
    if device.type != "cuda" or device.index is not None or local_world_size() == 1:
        return device
    if local_world_size() > torch.cuda.device_count():
        raise ConfigError(
            f"runtime.device={device}: {local_world_size()} processes on this machine, "
            f"{torch.cuda.device_count()} CUDA devices; start one process a device (torchrun --nproc-per-node), or "
            "set it to cpu"
        )
    return torch.device("cuda", local_rank())


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of returning them to the system after each step (elsewhere: nothing).

    Steps allocate and free the same tens of MB; taking them from the system anew costs a page fault every 4 KiB, a
    tenth of a TwHIN step (``benchmarks/twhin_step.py``). The arenas of threads other than the first would give back
    their blocks whatever they are told, and Arrow's own pool does: a stream that decodes beside the model would pay for
    zeroed pages as much as for decoding (``benchmarks/reader.py``). So all threads share one arena, Arrow too. The
    process keeps its peak memory for as long as it lives.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _NEVER_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _NEVER_BYTES)
        mallopt(_M_ARENA_MAX, 1)
        pa.set_memory_pool(pa.system_memory_pool())


def choose_device(name: str) -> torch.device:
    """``auto``: the first CUDA device, or the CPU where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"runtime.device={name}: this machine has {torch.cuda.device_count()} CUDA devices that torch "
            f"{torch.__version__} can use; set it to cpu or auto, or install a CUDA build of torch"
        )
    return device
