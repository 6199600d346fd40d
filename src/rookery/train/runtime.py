"""The machine made ready: device, threads, seed and number formats."""

from __future__ import annotations

import ctypes
import sys

import torch

from rookery.errors import ConfigError
from rookery.train.config import RuntimeConfig

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER_BYTES = 1 << 30


def prepare_runtime(config: RuntimeConfig) -> torch.device:
    """Set threads, seed and TensorFloat32 of this process and return the device to train on.

    Raises ``ConfigError`` for a device that this machine does not have.
    """
    device = choose_device(config.device)
    keep_freed_memory()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    torch.backends.cuda.matmul.allow_tf32 = config.enable_tensorfloat32
    torch.backends.cudnn.allow_tf32 = config.enable_tensorfloat32
    return device


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of returning them to the system after each step (elsewhere: nothing).

    Steps allocate and free the same tens of MB; taking them from the system anew costs a page fault every 4 KiB, a
    tenth of a TwHIN step (``benchmarks/twhin_step.py``). The process keeps its peak memory for as long as it lives.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _NEVER_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _NEVER_BYTES)


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
