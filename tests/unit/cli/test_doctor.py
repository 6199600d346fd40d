from __future__ import annotations

import importlib.metadata
import io
import json
import os
import sys

import pytest
import torch
import typer
from rich.console import Console

from rookery.cli import doctor


def test_facts_agree_with_their_sources():
    found = doctor.examine()
    assert found["packages"]["torch"] == importlib.metadata.version("torch")
    assert found["packages"]["pyyaml"] == importlib.metadata.version("PyYAML")
    assert "pytest" not in found["packages"]
    assert found["missing"] == {}
    assert found["torch"]["threads"] == torch.get_num_threads()
    assert found["torch"]["build"] == ("cuda" if torch.version.cuda else "cpu")
    assert found["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert found["memory_bytes"] > 2**28


def test_json_and_table_say_the_same(capsys):
    doctor.doctor(as_json=True)
    found = json.loads(capsys.readouterr().out)
    doctor.doctor(as_json=False)
    table = capsys.readouterr().out
    assert all(version in table for version in found["packages"].values())
    assert found["cpu"]["model"] in table


def test_a_missing_package_is_named_with_its_remedy(monkeypatch, capsys):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "duckdb":
            raise importlib.metadata.PackageNotFoundError
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(typer.Exit) as stopped:
        doctor.doctor(as_json=True)
    assert stopped.value.exit_code == 1
    assert json.loads(capsys.readouterr().out)["missing"]["duckdb"].startswith("pip install 'duckdb>=")


@pytest.mark.parametrize(("cuda", "remedy"), [(False, "requirements/cluster-cpu.txt"), (True, "rookery[cluster]")])
def test_an_absent_cluster_extra_names_the_command_that_brings_it(cuda, remedy, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(sys.modules, "torchrec", None)
    cluster = doctor._cluster(cuda)
    assert not cluster["present"]
    assert "ModuleNotFoundError" in cluster["problem"]
    assert remedy in cluster["install"]


def test_a_machine_without_any_extra_is_rendered(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrec", None)
    shown = io.StringIO()
    Console(file=shown, width=300).print(doctor._render(doctor.examine()))
    assert "ModuleNotFoundError" in shown.getvalue()
