"""What a person sees of the demo's stages."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from rookery.cli import demo
from rookery.demo.demo import DemoResult
from rookery.demo.measures import Measure


@pytest.fixture
def screen(monkeypatch):
    """Makes stderr a terminal or none, and returns what is written there."""

    def make(is_terminal):
        out = io.StringIO()
        console = Console(file=out, width=60, force_terminal=is_terminal, force_interactive=is_terminal)
        monkeypatch.setattr(demo, "progress_console", console)
        return out

    return make


def test_a_line_a_tenth_outside_a_terminal(screen):
    out = screen(False)
    with demo._Stages().stage(3, 8, "something long") as bar:
        for done in range(501):
            bar(done, 500)
    with demo._Stages().stage(4, 8, "something with a training") as bar:
        bar(1, 3)
        with bar.aside():
            out.write("step 10/10\n")
        bar(3, 3)
    shown = re.sub(r"\d+ s\n", "N s\n", out.getvalue())
    tenths = "".join(f"    {percent}%\n" for percent in range(10, 101, 10))
    assert shown == (
        f"3/8 something long\n{tenths}    N s\n4/8 something with a training\n    30%\nstep 10/10\n    100%\n    N s\n"
    )


def test_a_bar_in_a_terminal_that_makes_room_for_a_training(screen):
    out = screen(True)
    with demo._Stages().stage(1, 8, "something") as bar:
        assert "━" in out.getvalue()  # from the beginning, before anything is known
        bar(1, 4)
        with bar.aside():
            assert frames(out)[-1].split()[1] == "25%"
            before = out.getvalue()
            bar(2, 4)
            assert out.getvalue() == before
        bar(3, 4)
    assert frames(out)[-1].split()[1] == "75%"


def frames(out):
    """What the bar showed, in its order."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    return [line for line in re.split(r"[\r\n]", plain) if "━" in line]


def test_an_error_takes_the_bar_away(screen):
    out = screen(True)

    def fail():
        with demo._Stages().stage(1, 8, "something") as bar, bar.aside():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    hidden, shown = (out.getvalue().count(f"\x1b[?25{end}") for end in "lh")  # the cursor
    assert hidden == shown == 1


def test_the_table_names_what_is_not_predicted(tmp_path):
    measures = [Measure("NDCG", 0.6, 0.7, 0.8, 0.4)]
    parts = (tmp_path, measures, [], [])
    places = (tmp_path / "timeline", tmp_path / "world", tmp_path / "report.html")
    for tasks, expected in ((("is_reported",), True), ((), False)):
        out = io.StringIO()
        Console(file=out, width=160).print(demo._render(DemoResult(*parts, tasks, *places), 1.0))
        assert ("not predicted, so not weighed: is_reported" in out.getvalue()) is expected
