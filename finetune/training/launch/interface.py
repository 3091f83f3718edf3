"""The network interface towards rank 0. gloo otherwise takes that of the machine's name, often the loopback."""

import contextlib
import os
import socket
import struct

VARIABLE = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def choose_interface(host: str) -> str | None:
    """Name the interface towards `host` in GLOO_SOCKET_IFNAME, unless the user has named one.

    Returns:
        The name; None where it is not known (another system, IPv6 only, or a host name that means the loopback here).
    """
    if named := os.environ.get(VARIABLE):
        return named
    name = interface_towards(host)
    if name is not None:
        os.environ[VARIABLE] = name
    return name


def interface_towards(host: str) -> str | None:
    """The interface whose address this machine would send from; None where it is not known."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # a datagram socket sends nothing here
        address = probe.getsockname()[0]
        if address.startswith("127."):
            return None
        return next((name for _, name in socket.if_nameindex() if address_of(name) == address), None)
    return None


def address_of(interface: str) -> str | None:
    """The IPv4 address of an interface; None where it has none."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", interface[:15].encode()))
        return socket.inet_ntoa(answer[20:24])
    return None
