from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rookery.cli.main import app
from rookery.cli.output import run_command


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--listen", "nowhere"], "--listen nowhere: must be host:port, as in 127.0.0.1:8815"),
        (["--listen", "127.0.0.1:70000"], "must be host:port"),
        (["--listen", "192.0.2.1:8815"], "--listen=192.0.2.1: others can reach this address; name a file with a token"),
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key: give both, or neither"),
        (["--tls-cert", "absent.pem", "--tls-key", "absent.pem"], "--tls-cert absent.pem: cannot be read (No such"),
        ([], "absent.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_served_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run_command(lambda: app(["reader", str(tmp_path / "absent.yaml"), *flags])) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two certificates with their keys, a key with a password, and a file that is neither."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificates, is not there")
    folder = tmp_path_factory.mktemp("pems")
    for name in ("one", "two"):
        request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
        subprocess.run([openssl, *request, *files], check=True, capture_output=True, cwd=folder)
    locked = ["rsa", "-aes256", "-passout", "pass:secret", "-in", "one.key", "-out", "locked.key"]
    subprocess.run([openssl, *locked], check=True, capture_output=True, cwd=folder)
    (folder / "text").write_text("no PEM")
    return folder


@pytest.mark.parametrize(
    ("cert", "key", "message"),
    [
        ("text", "one.key", "--tls-cert text: no certificate in PEM"),
        ("one.key", "one.key", "--tls-cert one.key: no certificate in PEM"),
        ("one.crt", "text", "--tls-key text: no key in PEM without a password"),
        ("one.crt", "one.crt", "--tls-key one.crt: no key in PEM without a password"),
        ("one.crt", "locked.key", "--tls-key locked.key: no key in PEM without a password"),
        ("one.crt", "two.key", "--tls-key two.key: not the key of --tls-cert one.crt"),
        ("one.crt", "one.key", "absent.yaml: cannot be read"),
    ],
)
def test_certificate_and_key_are_read_before_anything_is_served(
    pems: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cert: str, key: str, message: str
) -> None:
    monkeypatch.chdir(pems)
    assert run_command(lambda: app(["reader", "absent.yaml", "--tls-cert", cert, "--tls-key", key])) == 2
    assert message in capsys.readouterr().err
