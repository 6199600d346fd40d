from __future__ import annotations

import pytest

from rookery.config.token import Token, find_token
from rookery.errors import ConfigError

SECRET = "0123456789abcdef"
LOOPBACK = "127.0.0.1"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_token(host):
    assert find_token(host, None, {}) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_elsewhere_a_token_is_needed(host):
    with pytest.raises(ConfigError, match="token_file"):
        find_token(host, None, {})
    assert find_token(host, None, {"ROOKERY_TOKEN": SECRET}).admits(f"Bearer {SECRET}".encode())


def test_a_token_from_a_file(tmp_path):
    file = tmp_path / "token"
    file.write_text(SECRET + "\n")
    assert find_token(LOOPBACK, file, {}).admits(f"bearer {SECRET}".encode())
    with pytest.raises(ConfigError, match="keep one of the two"):
        find_token(LOOPBACK, file, {"ROOKERY_TOKEN": SECRET})


@pytest.mark.parametrize("nothing", ["", " \n"])
def test_a_variable_that_holds_nothing_is_told_as_such(tmp_path, nothing):
    file = tmp_path / "token"
    file.write_text(SECRET)
    with pytest.raises(ConfigError) as beside:
        find_token(LOOPBACK, file, {"ROOKERY_TOKEN": nothing})
    said = "ROOKERY_TOKEN is set, but holds nothing: unset it"
    assert str(beside.value) == f"{said}; the token is that of token_file={file}"
    with pytest.raises(ConfigError) as alone:
        find_token(LOOPBACK, None, {"ROOKERY_TOKEN": nothing})
    assert str(alone.value) == f"{said}, or put a token there; make one with: openssl rand -hex 32"


@pytest.mark.parametrize(
    "text", ["", "short", "with a space in it, long", "ümlaut-ümlaut-ümlaut", "two\nlines-and-more-text"]
)
def test_unfit_tokens_are_refused(tmp_path, text):
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(ConfigError, match="at least 16 printable ASCII"):
        find_token(LOOPBACK, file, {})
    with pytest.raises(ConfigError, match="ROOKERY_TOKEN"):
        find_token(LOOPBACK, None, {"ROOKERY_TOKEN": text})


def test_a_token_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        find_token(LOOPBACK, tmp_path / "absent", {})


@pytest.mark.parametrize(
    "header", [None, b"", b"Bearer", b"Bearer ", b"Basic 0123456789abcdef", b"Bearer 0123456789abcdeF", SECRET.encode()]
)
def test_wrong_headers_are_not_admitted(header):
    assert not Token(SECRET).admits(header)
