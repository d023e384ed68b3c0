"""Finds the address at which other ranks reach this host, and listens only there."""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil

from pipelocal.errors import UserError

LOOPBACK = "127.0.0.1"


def own_address() -> str:
    """Return the address at which other ranks reach this host.

    This is the loopback address if all ranks are on this host, the address of gloo's interface if one is
    named, and otherwise the address from which the master is reached.

    Raises:
        UserError: the name of the master, or without a master of this host, has no address.
    """
    if one_host():
        return LOOPBACK
    named = _of_interface(os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0])
    if named is not None:
        return named
    name = os.environ.get("MASTER_ADDR") or socket.gethostname()
    try:
        family, kind, _, _, master = socket.getaddrinfo(name, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            # Connecting a datagram socket sends nothing; it only chooses the route.
            probe.connect(master)
            address: str = probe.getsockname()[0]
    except OSError as error:
        raise UserError(
            f"the host name '{name}' leads to no address ({error}): set MASTER_ADDR to the address "
            f"of the first node"
        ) from error
    several_hosts = os.environ.get("LOCAL_WORLD_SIZE", "1") != os.environ.get("WORLD_SIZE", "1")
    if several_hosts and ipaddress.ip_address(address).is_loopback:
        # The master's own name often leads to a loopback address on the master.
        return _outward_address() or address
    return address


def one_host() -> bool:
    """Return whether the launcher says that all ranks are on this host."""
    size = os.environ.get("WORLD_SIZE")
    return size is not None and os.environ.get("LOCAL_WORLD_SIZE") == size


def loopback_interface() -> str | None:
    """Return the name of the loopback interface; None if there is none."""
    for interface, addresses in psutil.net_if_addrs().items():
        if any(entry.address == LOOPBACK for entry in addresses):
            return str(interface)
    return None


def listen() -> socket.socket:
    """Open a socket that listens only at :func:`own_address`, on a port that the system chooses.

    Raises:
        UserError: this host has no such address.
    """
    address = own_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, 0), family=family)
    except OSError as error:
        raise UserError(
            f"this host cannot listen at its address {address} ({error}): set MASTER_ADDR to the "
            f"address of the first node, or name an interface with --interface"
        ) from error


def _of_interface(name: str) -> str | None:
    """Return the address of an interface of this host, IPv4 if it has one."""
    entries = psutil.net_if_addrs().get(name, [])
    for family in (socket.AF_INET, socket.AF_INET6):
        for entry in entries:
            # A link-local address is useless without the name of an interface.
            if entry.family == family and "%" not in entry.address:
                return str(entry.address)
    return None


def _outward_address() -> str | None:
    """Return an IPv4 address of this host that is not loopback."""
    for addresses in psutil.net_if_addrs().values():
        for entry in addresses:
            if entry.family == socket.AF_INET and not entry.address.startswith("127."):
                return str(entry.address)
    return None
