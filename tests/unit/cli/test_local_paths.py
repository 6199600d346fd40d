"""Each argument and flag of the command line that is a path or a URL."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.models import ArgumentInfo

from rookery.cli.local_paths import path_parameters, refuse_urls
from rookery.cli.main import app
from rookery.cli.output import run_command

URL = "s3://birds/x"
LOCATIONS = {"run", "source", "graph", "schema"}
"""Texts that may be URLs, or paths; ``rookery.storage.location`` reads them."""
FILES_TO_READ = {"edges", "valid", "test"}
"""Of `twhin ingest`: files and globs of this machine, where a URL finds none."""
OTHER_TEXTS = {
    "checkpoint", "delimiter", "duplicates", "embeddings", "end_date", "end_datetime", "entity_type", "file_format",
    "host", "id_type", "ids", "item", "labels", "leave_k_out", "lhs_column", "listen", "mask_mantissa", "memory_limit",
    "num_entities", "overrides", "parameters", "random_split", "relation", "relation_column", "rename", "rhs_column",
    "split", "time", "time_column", "time_split", "user", "weight_column",
}  # fmt: skip


def commands(group: typer.Typer, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield (*words, command.name or command.callback.__name__), command.callback
    for each in group.registered_groups:
        name = each.name or each.typer_instance.info.name
        yield from commands(each.typer_instance, (*words, name))


COMMANDS = dict(commands(app))
PLACES = [(words, name) for words, callback in COMMANDS.items() for name in path_parameters(callback)]


def plain(hint: Any) -> tuple[Any, Any]:
    """What a parameter is, and what Typer was told of it."""
    told = None
    if get_origin(hint) is Annotated:
        hint, told = get_args(hint)[:2]
    while of := [each for each in get_args(hint) if each is not type(None)]:
        hint = of[0]
    return hint, told


def line(words: tuple[str, ...], name: str, value: str) -> list[str]:
    """A command with everything that it cannot do without, and ``value`` for one parameter."""
    callback = COMMANDS[words]
    arguments, flags = [], []
    for each, parameter in inspect.signature(callback).parameters.items():
        kind, told = plain(get_type_hints(callback, include_extras=True)[each])
        if each != name and parameter.default is not inspect.Parameter.empty:
            continue
        given = value if each == name else _anything(kind)
        if isinstance(told, ArgumentInfo):
            arguments.append(given)
        else:
            flags += [_flag(each, told), given]
    return [*words, *flags, *arguments]


def _flag(name: str, told: Any) -> str:
    """Typer has the first name that is declared where a default would stand."""
    declared = getattr(told, "default", None)
    return declared if isinstance(declared, str) else f"--{name.replace('_', '-')}"


def _anything(kind: Any) -> str:
    return str(next(iter(kind)).value) if isinstance(kind, enum.EnumMeta) else "anything"


def test_there_are_many_of_them() -> None:
    assert len(PLACES) > 60
    assert {("twhin", "export"), ("ranker", "score"), ("data", "planted"), ("timeline", "build")} <= {
        w for w, _ in PLACES
    }


@pytest.mark.parametrize(("words", "name"), PLACES, ids=lambda part: part if isinstance(part, str) else "-".join(part))
def test_a_url_for_a_path_is_refused_before_anything_is_done(
    words: tuple[str, ...],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code = run_command(lambda: app(line(words, name, URL), standalone_mode=False))
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert f"{path_parameters(COMMANDS[words])[name]} {URL}: must be a path of this machine, not a URL; " in err
    assert list(tmp_path.iterdir()) == []


def test_every_text_is_known_for_what_it_is() -> None:
    """A new parameter is a ``Path``, and refuses URLs, or stands in one of the lists above."""
    texts = {
        name
        for callback in COMMANDS.values()
        for name, hint in get_type_hints(callback, include_extras=True).items()
        if plain(hint)[0] is str
    }
    assert texts == LOCATIONS | FILES_TO_READ | OTHER_TEXTS


@pytest.mark.parametrize("flag", [[], ["--valid"], ["--test"]])
def test_edges_behind_a_url_are_not_found(
    flag: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edges.tsv").write_text("a\tb\nb\tc\n")
    edges = ["edges.tsv", *flag, f"{URL}.tsv"] if flag else [f"{URL}.tsv"]
    assert run_command(lambda: app(["twhin", "ingest", *edges, "graph"], standalone_mode=False)) == 2
    assert "birds/x.tsv" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["edges.tsv"]


def test_several_paths_and_the_url_of_a_file() -> None:
    taken: list[Any] = []
    small = typer.Typer()

    def command(files: list[Path], to: Path | None = None) -> None:
        taken.append((files, to))

    small.command()(command)
    refuse_urls(small)
    small(["a/b", "file:///c/d", "--to", "file:///e"], standalone_mode=False)
    small(["c:x"], standalone_mode=False)
    assert taken == [([Path("a/b"), Path("/c/d")], Path("/e")), ([Path("c:x")], None)]
    assert run_command(lambda: small(["a", "gs://b/c"], standalone_mode=False)) == 2
