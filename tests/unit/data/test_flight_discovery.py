from __future__ import annotations

import pytest

from rookery.config.loader import parse_config
from rookery.data.flight_discovery import Address, addresses_of_name, expand_nodes, find_readers
from rookery.errors import ConfigError
from rookery.parallel.config import ParallelConfig, ReadersConfig


def config(*addresses: str, environment: str = "none") -> ReadersConfig:
    return parse_config(ReadersConfig, {"addresses": list(addresses), "environment": environment}, "test")


def test_a_list_is_taken_as_it_is() -> None:
    found = find_readers(config("reader-0:8815", "10.0.0.7:1", "[::1]:2", "reader-0:8815"), {})
    assert list(map(str, found)) == ["reader-0:8815", "10.0.0.7:1", "[::1]:2"]


def test_all_addresses_behind_a_name_of_kubernetes() -> None:
    """Each keeps the name, which is what its certificate is for."""
    known = {"rookery-readers.jobs.svc": ["10.1.0.9", "10.1.0.4"]}
    found = find_readers(
        config("rookery-readers.jobs.svc:8815", "not-yet:1", environment="kubernetes"),
        {},
        lambda host, port: known.get(host, []),
    )
    assert found == [Address(each, 8815, "rookery-readers.jobs.svc") for each in ("10.1.0.9", "10.1.0.4")]


def test_names_are_looked_up() -> None:
    assert "127.0.0.1" in addresses_of_name("localhost", 8815)
    assert addresses_of_name("name.invalid", 8815) == []


def test_nodes_of_a_slurm_job() -> None:
    environment = {"SLURM_JOB_NODELIST_HET_GROUP_1": "cpu[07-09,12]"}
    found = find_readers(config("SLURM_JOB_NODELIST_HET_GROUP_1:8815", environment="slurm"), environment)
    assert list(map(str, found)) == ["cpu07:8815", "cpu08:8815", "cpu09:8815", "cpu12:8815"]
    with pytest.raises(ConfigError, match="SLURM_JOB_NODELIST names no nodes; give the variable"):
        find_readers(config("SLURM_JOB_NODELIST:8815", environment="slurm"), environment)
    with pytest.raises(ConfigError, match=r"NODES=n\[a-b\]: \[a-b\] is no range of numbers"):
        find_readers(config("NODES:8815", environment="slurm"), {"NODES": "n[a-b]"})


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("login", ["login"]),
        ("a,b-1,c.example", ["a", "b-1", "c.example"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[01-03,7]-gpu,login", ["n01-gpu", "n02-gpu", "n03-gpu", "n7-gpu", "login"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("r[1-2]c[08-09]n[5]", ["r1c08n5", "r1c09n5", "r2c08n5", "r2c09n5"]),
        ("", []),
    ],
)
def test_lists_of_nodes(nodes: str, expected: list[str]) -> None:
    assert expand_nodes(nodes) == expected


@pytest.mark.parametrize("address", ["reader", "reader:", ":8815", "reader:x", "reader:0", "reader:70000"])
def test_addresses_have_a_host_and_a_port(address: str) -> None:
    with pytest.raises(ConfigError, match="is not host:port; write it as in reader-0:7070"):
        config(address)


def test_other_processes_wait_longer_than_the_readers_are_waited_for() -> None:
    readers = {"addresses": ["r:1"], "wait_s": 500, "deadline_s": 100}
    with pytest.raises(ConfigError, match=r"make it more than readers\.wait_s \+ readers\.deadline_s \(600\)"):
        parse_config(ParallelConfig, {"readers": readers}, "test")
    parse_config(ParallelConfig, {"readers": readers, "timeout_s": 601}, "test")
