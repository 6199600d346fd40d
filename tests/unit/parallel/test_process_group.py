from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import os, torch, torch.distributed as dist
from pathlib import Path
from rookery.parallel.process_group import default_process_group

os.environ["GLOO_SOCKET_IFNAME"] = "set-by-the-caller"
group = default_process_group()
assert default_process_group() is group is dist.group.WORLD
assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (0, 1, "gloo")
assert os.environ["GLOO_SOCKET_IFNAME"] == "set-by-the-caller"
total = torch.arange(3.0)
dist.all_reduce(total)
assert total.tolist() == [0.0, 1.0, 2.0]

descriptors = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
sockets = {os.readlink(path) for path in descriptors if os.path.exists(path)}
for family in ("tcp", "tcp6"):
    for line in Path(f"/proc/self/net/{family}").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in sockets:
            print(family, fields[1].split(":")[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the sockets of a process from /proc")
def test_group_of_one_process_is_reused_listens_on_loopback_alone_and_closes_silently():
    command = [sys.executable, "-W", "error", "-c", _SCRIPT]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    loopback = {"tcp 0100007F", "tcp6 00000000000000000000000001000000"}
    assert set(result.stdout.splitlines()) <= loopback
