"""The offline guard: reaching for another machine raises `ReachedForTheNetwork`, in this process and all its children.

Python imports a `sitecustomize` from PYTHONPATH when it starts; `make test` and `conftest.py` put this folder there.
Loopback and unix sockets stay open: Jupyter kernels, the test workers and the test of the built site need them.
"""

import ipaddress
import socket
import sys

LOCAL_NAMES = {"", "localhost", "localhost.localdomain", "ip6-localhost", socket.gethostname()}

# Audit event -> the index of the address among its arguments (https://docs.python.org/3/library/audit_events.html).
ADDRESS_AT = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
}


class ReachedForTheNetwork(RuntimeError):
    """Not an OSError, which network code catches and retries."""


def is_local(address: object) -> bool:
    """True for None, loopback, unix sockets and this machine's own name.

    >>> is_local(("127.0.0.1", 80)), is_local("/a.socket"), is_local("example.org"), is_local(("192.0.2.1", 80))
    (True, True, False, False)
    """
    host = address[0] if isinstance(address, tuple) and address else address
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if not isinstance(host, str):
        return True  # no address, or that of a family which stays on this machine (netlink)
    if host.startswith(("/", "\0")) or host in LOCAL_NAMES:
        return True
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return ip.is_loopback or ip.is_unspecified


def guard(event: str, args: tuple) -> None:
    """The audit hook."""
    if event in ADDRESS_AT and not is_local(args[ADDRESS_AT[event]]):
        raise ReachedForTheNetwork(f"{event} to {args[ADDRESS_AT[event]]!r}: tests and notebooks run offline")


# A hook cannot be removed, so it is installed once, however often this file is run.
if not getattr(sys, "offline_guard", False):
    sys.offline_guard = True  # type: ignore[attr-defined]
    sys.addaudithook(guard)
