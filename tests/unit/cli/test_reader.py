from __future__ import annotations

from pathlib import Path

import pytest

from rookery.cli.main import app
from rookery.cli.output import run_command


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--listen", "nowhere"], "--listen nowhere: must be host:port, as in 127.0.0.1:8815"),
        (["--listen", "127.0.0.1:70000"], "must be host:port"),
        (["--listen", "192.0.2.1:8815"], "host=192.0.2.1: others can reach this address; name a file with a token"),
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key: give both, or neither"),
        (["--tls-cert", "absent.pem", "--tls-key", "absent.pem"], "--tls-cert, --tls-key: cannot be read"),
        ([], "absent.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_served_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run_command(lambda: app(["reader", str(tmp_path / "absent.yaml"), *flags])) == 2
    assert message in capsys.readouterr().err
