"""Whose the other end of a connection is."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

_TABLES = tuple(Path(f"/proc/net/{name}") for name in ("tcp", "tcp6"))


def is_own(peer: tuple[str, int], port: int, where_unknown: bool = False) -> bool:
    """Return whether the peer of a connection to `port` of 127.0.0.1 is of this user.

    Only Linux tells; where its tables do not show the port itself, it is `where_unknown`.
    """
    number = struct.unpack("=I", socket.inet_aton(peer[0]))[0]
    theirs, ours = f"{number:08X}:{peer[1]:04X}", f":{port:04X}"
    tells = False
    for table in _TABLES:  # a peer may use a socket of IPv6 for an address of IPv4
        with (
            contextlib.suppress(OSError, ValueError, IndexError),
            table.open("r", -1, "ascii") as rows,
        ):
            for row in rows:
                columns = row.split()
                tells = tells or columns[1].endswith(ours)
                if columns[1].endswith(theirs) and columns[2].endswith(ours):
                    # that of a connection which was closed is 0, and so is its inode
                    return columns[9] != "0" and int(columns[7]) == os.geteuid()
    return where_unknown and not tells
