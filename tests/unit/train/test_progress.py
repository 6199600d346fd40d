from __future__ import annotations

import io
import re

from rich.console import Console

from rookery.train.progress import Progress

METRICS = {"loss": 0.123456, "edges_per_s": 12345.6, "epoch": 0.5, "lr/user": 0.1, "time/data_s": 0.2}


def test_a_line_a_log_outside_a_terminal() -> None:
    out = io.StringIO()
    with Progress(10, 1000, "edges", Console(file=out, width=40)) as progress:
        progress.advance(11, 500)
        progress.log(11, METRICS)
        progress.note("saved [step 11]")
    shown = re.sub(r"\d+:\d\d:\d\d", "H:MM:SS", out.getvalue())
    assert shown == "step 11/1,000  loss 0.12346  12,346 edges/s  H:MM:SS left\nsaved [step 11]\n"


def test_a_bar_in_a_terminal() -> None:
    out = io.StringIO()
    with Progress(0, 1000, "edges", Console(file=out, width=160, force_terminal=True)) as progress:
        progress.advance(250, 500)
        progress.log(250, METRICS)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).split("\r")[-1]
    assert "250/1000" in last
    assert "edges/s" in last
    assert "loss 0.12346" in last
