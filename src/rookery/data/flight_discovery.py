"""Where the readers are: as listed, behind a name of Kubernetes, or on the nodes of a SLURM job."""

from __future__ import annotations

import itertools
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rookery.errors import ConfigError
from rookery.parallel.config import ReadersConfig

_BRACKETS = re.compile(r"\[([^\]]*)\]")
_NODE = re.compile(r"(?:[^,\[]|\[[^\]]*\])+")

Resolve = Callable[[str, int], "list[str]"]


@dataclass(frozen=True)
class Address:
    """``host:port`` to connect to, and the name that its certificate is for."""

    host: str
    port: int
    name: str

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def addresses_of_name(host: str, port: int) -> list[str]:
    """All addresses of a name, sorted; none where it has none (yet)."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return sorted({str(entry[4][0]) for entry in found})


def find_readers(
    config: ReadersConfig, environment: Mapping[str, str], resolve: Resolve = addresses_of_name
) -> list[Address]:
    """The readers that there are now, the same list for every trainer. May be empty where names have no address yet.

    Raises ``ConfigError`` for a variable that is not set or holds no list of nodes.
    """
    found: list[Address] = []
    for given in config.addresses:
        host, _, port = given.rpartition(":")
        host = host.strip("[]")
        if config.environment == "kubernetes":
            found += [Address(each, int(port), host) for each in resolve(host, int(port))]
        elif config.environment == "slurm":
            found += [Address(node, int(port), node) for node in _nodes_of(host, environment)]
        else:
            found.append(Address(host, int(port), host))
    return list(dict.fromkeys(found))


def expand_nodes(nodes: str) -> list[str]:
    """The names in a list as SLURM writes it: ``n[01-03,7]-gpu,login`` is n01-gpu, n02-gpu, n03-gpu, n7-gpu, login.

    Raises ``ValueError`` for what is no such list.
    """
    names: list[str] = []
    for pattern in _NODE.findall(nodes):
        literals = _BRACKETS.split(pattern)[::2]
        ranges = [list(_numbers(each)) for each in _BRACKETS.findall(pattern)]
        names += [
            "".join(itertools.chain(*itertools.zip_longest(literals, numbers, fillvalue="")))
            for numbers in itertools.product(*ranges)
        ]
    return names


def _nodes_of(variable: str, environment: Mapping[str, str]) -> list[str]:
    try:
        nodes = expand_nodes(environment.get(variable, ""))
    except ValueError as error:
        raise ConfigError(f"parallel.readers.addresses: {variable}={environment[variable]}: {error}") from error
    if not nodes:
        raise ConfigError(
            f"parallel.readers.addresses: {variable} names no nodes; give the variable in which SLURM lists those of "
            "the readers, such as SLURM_JOB_NODELIST or SLURM_JOB_NODELIST_HET_GROUP_1"
        )
    return nodes


def _numbers(ranges: str) -> Iterator[str]:
    """``01-03,7`` is 01, 02, 03, 7."""
    for each in ranges.split(","):
        first, dash, last = each.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"[{ranges}] is no range of numbers; write it as in node[01-08,12]")
        for number in range(int(first), int(last or first) + 1):
            yield str(number).zfill(len(first))
