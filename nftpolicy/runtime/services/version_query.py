# SPDX-License-Identifier: BSD-2-Clause
"""DNS query for version.bind, class CHAOS, type TXT.

A server answers it without asking another one (RFC 4892).
"""

from __future__ import annotations

import struct

_TXT, _CHAOS = 16, 3  # type and class, RFC 1035 3.2
_RECURSION_DESIRED = 0x0100
_QUESTIONS = 1
_HEADER_SIZE = 12
_ID = 0x6E70
_QR = 0x80  # response bit, in the third byte

VERSION_QUERY = (
    struct.pack("!6H", _ID, _RECURSION_DESIRED, _QUESTIONS, 0, 0, 0)
    + b"\7version\4bind\0"
    + struct.pack("!2H", _TXT, _CHAOS)
)


def is_version_reply(message: bytes) -> bool:
    """Return True if a message is a response to VERSION_QUERY, with any response code."""
    return len(message) >= _HEADER_SIZE and message[:2] == VERSION_QUERY[:2] and bool(message[2] & _QR)
