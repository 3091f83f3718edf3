"""Who may ask: a token, the names under which the server may be called, and pages of other origins."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from finetune.errors import FinetuneError
from finetune.serving.refusal import Refused

VARIABLE = "FINETUNE_TOKEN"
SHORTEST = 16
"""Characters of a token; shorter ones can be guessed."""
LOCAL = ("localhost", "127.0.0.1", "::1")


def read_token(file: str | None) -> str | None:
    """The token in the file, else in the environment; None for none. It has no key of its own, as command lines are
    seen by other users and logged.

    Raises:
        FinetuneError: a file that cannot be read, or a token that is too short or not of one line of ASCII.
    """
    if file is None:
        token, where = os.environ.get(VARIABLE), f"the environment variable {VARIABLE}"
        if token is None:
            return None
    else:
        where = f"token_file={file}"
        try:
            token = Path(file).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
            raise FinetuneError(f"{where} cannot be read: {reason}.") from None
    token = token.strip()
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise FinetuneError(
            f"{where} must hold one token of at least {SHORTEST} printable characters without spaces. "
            'To make one: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return token


def is_local(host: str) -> bool:
    """Whether an address is that of this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Access:
    """The rules; None or nothing where there is no rule."""

    token: str | None = None
    hosts: Sequence[str] = ()
    """Names in the header Host that are accepted. With any other, a page whose name was pointed at this machine (DNS
    rebinding) could ask with its visitor's browser."""

    @classmethod
    def of(cls, host: str, token: str | None, names: Sequence[str] = ()) -> Access:
        """The rules of a server that is bound to `host`. `names` are further names that it is called by; without any,
        a server for the network may be called by every name."""
        return cls(token, (*LOCAL, host, *names) if is_local(host) or names else ())

    def check_host(self, host: str, origin: str | None) -> None:
        """Raise a Refused for a name that is not accepted, and for pages of another origin."""
        name = _name(f"//{host}")
        if self.hosts and name not in {each.lower() for each in self.hosts}:
            raise Refused(421, "The server is not called by this name: see the key hosts of job=serve.")
        if origin is not None and _netloc(origin) != host.lower():
            raise Refused(403, "Pages of other origins may not ask this server.")

    def check_token(self, authorization: str) -> None:
        """Raise a Refused unless the header is `Bearer TOKEN`; the time of the comparison tells nothing."""
        if self.token is None:
            return
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.token.encode())
        if scheme.lower() != "bearer" or not same:
            raise Refused(401, "A token is needed: Authorization: Bearer TOKEN.")


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""
