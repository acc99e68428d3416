# SPDX-License-Identifier: BSD-2-Clause
"""Output marks of IPsec: security associations that write the mark of packets (include/uapi/linux/xfrm.h)."""

from __future__ import annotations

import errno
import socket
import struct

from ...netstate.bypass import XFRM, Actor, Look, MarkWrite
from ...netstate.nft import FULL_MASK
from ..errors import error_reason
from .attributes import attributes, ip_text, native_integer
from .constants import NETLINK_XFRM
from .socket import NetlinkSocket

_XFRM_MSG_GETSA = 18
_XFRMA_SET_MARK, _XFRMA_SET_MARK_MASK = 29, 30
# struct xfrm_usersa_info, as xfrm_user.c sends it: selector, id, saddr, lifetimes, statistics, seq, reqid, family, ...
_SA_SIZE, _SA_DESTINATION, _SA_FAMILY = 224, 56, 212
_U32 = struct.Struct("=I")


def look_at_xfrm() -> Look:
    """Return the security associations that write the mark of packets."""
    try:
        with NetlinkSocket(NETLINK_XFRM) as netlink:
            messages = netlink.dump(_XFRM_MSG_GETSA, b"")
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return Look(XFRM)  # a kernel without XFRM
        return Look(XFRM, missing=error_reason(error))
    actors = []
    for raw, start, end in messages:
        actor = association_actor(raw, start, end)
        if actor is not None:
            actors.append(actor)
    return Look(XFRM, tuple(actors), f"{len(messages)} security associations" if messages else "")


def association_actor(raw: bytes, start: int, end: int) -> Actor | None:
    """Return the write of a XFRM_MSG_NEWSA: mark = (mark & ~mask) | (value & mask); None if it writes none."""
    values = dict(attributes(raw, start + _SA_SIZE, end))
    if _XFRMA_SET_MARK not in values:
        return None
    (value,) = _U32.unpack(values[_XFRMA_SET_MARK])
    (mask,) = _U32.unpack(values[_XFRMA_SET_MARK_MASK]) if _XFRMA_SET_MARK_MASK in values else (FULL_MASK,)
    size = 4 if native_integer(raw[start + _SA_FAMILY : start + _SA_FAMILY + 2]) == socket.AF_INET else 16
    destination = ip_text(raw[start + _SA_DESTINATION : start + _SA_DESTINATION + size])
    return Actor(f"IPsec security association to {destination} (output-mark)", (MarkWrite(mask, value & mask, 0),))
