"""Who may reach a server: the token that requests carry, from a file or the environment, never from the command line,
where others see it; and which addresses this machine alone reaches.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from pathlib import Path

from rookery.errors import ConfigError

VARIABLE = "ROOKERY_TOKEN"
MIN_LENGTH = 16
_MAKE = "make one with: openssl rand -hex 32"


class Token:
    """A secret that is compared in the same time whatever was guessed. Only its digest is kept."""

    def __init__(self, secret: str) -> None:
        self._digest = _digest(secret.encode())

    def admits(self, authorization: bytes | None) -> bool:
        """Whether the header ``Authorization`` carries it as ``Bearer <token>``."""
        scheme, _, guess = (authorization or b"").partition(b" ")
        # Digests have one length, so that not even the length of the token shows.
        return hmac.compare_digest(_digest(guess.strip()), self._digest) and scheme.lower() == b"bearer"


def is_loopback(host: str) -> bool:
    """Whether ``host`` is localhost, or one of this machine's own addresses (127.0.0.0/8, ::1)."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def find_token(
    host: str, token_file: Path | None, environment: Mapping[str, str], *, given_as: str = "host"
) -> Token | None:
    """The token of a server at ``host``, None where only this machine reaches it and none is given.

    ``given_as`` is what the user calls the host: a field or a flag.

    Raises ``ConfigError`` as ``find_secret`` does, and where a token is missing.
    """
    secret = find_secret(token_file, environment)
    if secret is None and not is_loopback(host):
        raise ConfigError(
            f"{given_as}={host}: others can reach this address; name a file with a token (token_file, --token-file), "
            f"set {VARIABLE}, or leave {given_as} out for 127.0.0.1"
        )
    return None if secret is None else Token(secret)


def find_secret(token_file: Path | None, environment: Mapping[str, str]) -> str | None:
    """The token itself, None where none is given.

    Raises ``ConfigError`` for a token that is too short, not printable ASCII, or given in two ways.
    """
    given = environment.get(VARIABLE)
    if given is not None and not given.strip():
        raise ConfigError(
            f"{VARIABLE} is set, but holds nothing: unset it"
            + (f"; the token is that of token_file={token_file}" if token_file else f", or put a token there; {_MAKE}")
        )
    if token_file is not None and given is not None:
        raise ConfigError(f"token_file={token_file}: {VARIABLE} is set, too; keep one of the two")
    if token_file is not None:
        return _checked(_read(token_file), str(token_file))
    return None if given is None else _checked(given, VARIABLE)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file={path}: cannot be read ({error}); write one line of text") from error


def _checked(secret: str, source: str) -> str:
    if len(secret) < MIN_LENGTH or not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise ConfigError(
            f"{source}: a token is one line of at least {MIN_LENGTH} printable ASCII characters without spaces; {_MAKE}"
        )
    return secret


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
