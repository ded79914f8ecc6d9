"""Network interfaces of this machine: the ways by which processes that train together may talk."""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import suppress

NODE_ADDRESS = "LATENTBENCH_NODE_ADDRESS"
"""Environment variable with the IPv4 address under which the other machines of a cluster reach this one."""
_ASK_ADDRESS = 0x8915
"""SIOCGIFADDR of Linux's <linux/sockios.h>."""


def loopback() -> str:
    """Name of the loopback interface: `lo` on Linux, `lo0` on macOS."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def interface_of(address: str) -> str | None:
    """Name of the interface with an IPv4 address; None where no interface has it, or the system does not tell."""
    found = (name for _, name in socket.if_nameindex() if _address_of(name) == address)
    return next(found, None)


def _address_of(name: str) -> str | None:
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        request = struct.pack("256s", name.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(asked.fileno(), _ASK_ADDRESS, request)[20:24])
    return None
