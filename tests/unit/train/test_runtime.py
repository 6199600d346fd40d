from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

import rookery
from rookery.errors import ConfigError
from rookery.train.config import RuntimeConfig
from rookery.train.environment import describe_environment
from rookery.train.runtime import choose_device, prepare_runtime


def test_seed_threads_and_number_format_are_set() -> None:
    num_threads, allows = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    try:
        config = RuntimeConfig(device="cpu", seed=5, num_threads=1, enable_tensorfloat32=not allows)
        assert prepare_runtime(config) == torch.device("cpu")
        assert torch.get_num_threads() == 1
        assert torch.backends.cuda.matmul.allow_tf32 is not allows
        drawn = torch.rand(3)
        torch.manual_seed(5)
        torch.testing.assert_close(drawn, torch.rand(3), rtol=0, atol=0)
    finally:
        torch.set_num_threads(num_threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allows


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_device_that_is_absent_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.device=cuda:99: this machine has \d+ CUDA devices"):
        choose_device("cuda:99")


def test_the_environment_names_versions_hardware_and_commit() -> None:
    found = describe_environment()
    assert found["rookery"] == rookery.__version__
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == torch.__version__
    assert found["num_cpus"] == os.cpu_count()
    assert found["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(rookery.__file__).parent, capture_output=True, text=True, check=False
    )
    if head.returncode == 0:
        assert found["commit"].removesuffix("+changes") == head.stdout.strip()
    else:
        assert found["commit"] is None
