# SPDX-License-Identifier: BSD-2-Clause
"""Form of an ARP frame whose fields a packet leaves open: for IPv4 on Ethernet, without padding (RFC 826)."""

from __future__ import annotations

from ..packet_view import PacketView

_ETHERTYPE = 0x0806
_FORMAT, _FORMAT_BITS = 0x0001_0800_06_04, 48  # hardware type, protocol type, lengths of their addresses
_FRAME_LENGTH = 14 + 28  # bytes, with the link header
_FIELDS = frozenset({"arp", "meta", "ether"})  # headers with fields that may give it another form


def is_usual_arp(view: PacketView) -> bool:
    """Return True if the packet is an ARP frame of the usual form."""
    return view.protocol_number == _ETHERTYPE and not any(header in _FIELDS for header, _ in view.fields)


def format_bits(view: PacketView, offset: int, length: int) -> int | None:
    """Return bits of the network header that are the same in each ARP frame of the usual form; None for others."""
    shift = _FORMAT_BITS - offset - length
    return _FORMAT >> shift & (1 << length) - 1 if shift >= 0 and is_usual_arp(view) else None


def frame_length(view: PacketView) -> int | None:
    """Return the length of an ARP frame of the usual form at its device, None for others."""
    return _FRAME_LENGTH if is_usual_arp(view) else None
