"""The process: a socket, uvicorn on it, and nothing of an upload in the log."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import warnings
from typing import Any

from finetune.errors import FinetuneError

READERS = ("PIL", "pydicom", "pylibjpeg", "openjpeg", "libjpeg", "python_multipart", "multipart")
"""Packages that read uploads: their messages may hold values of them."""
MAX_CONNECTIONS = 512
KEEP_ALIVE = 10  # seconds


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        FinetuneError: the address is no address of this machine, or in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named: asyncio sends small packets at once (TCP_NODELAY) only where it is; else a client that
    # keeps its connection waits 40 ms for each answer.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(MAX_CONNECTIONS)
        return listening
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise FinetuneError(f"port={port} of {host} is in use. Name another port, or 0 for a free one.") from None
        if error.errno == errno.EACCES:
            raise FinetuneError(f"port={port} may not be opened by this user: take one from 1024 on.") from None
        raise FinetuneError(
            f"host={host} port={port} cannot be opened ({error.strerror or error}). host is an address of this "
            "machine: 127.0.0.1 for itself alone, 0.0.0.0 for the network."
        ) from None


def address(listening: socket.socket) -> str:
    """The URL of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def silence_readers() -> None:
    """For the rest of the process, no message of the packages that read uploads."""
    for name in READERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [logging.NullHandler()]
        logger.propagate = False
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")


def run(app: Any, listening: socket.socket, timeout: float) -> None:
    """Serve until SIGINT or SIGTERM: no new requests, those in progress are answered. Then the signal takes its course.

    Args:
        timeout: seconds that requests in progress have then.
    """
    import uvicorn

    silence_readers()
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,  # it has the addresses that clients typed; the gate writes a line for each request
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(timeout) + 1,
        ws="none",
    )
    with contextlib.closing(listening):
        uvicorn.Server(config).run(sockets=[listening])
