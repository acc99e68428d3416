# SPDX-License-Identifier: BSD-2-Clause
"""Validation of the translators of 464XLAT. Each check yields (key path, what to do)."""

from __future__ import annotations

from collections.abc import Iterator

from .objects import Policy
from .validate_forwards import PolicyFault

NAT64_LENGTHS = (32, 40, 48, 56, 64, 96)  # RFC 6052 2.2


def find_clat_faults(policy: Policy) -> Iterator[PolicyFault]:
    """Yield the faults of all translators."""
    for name, uplink in policy.uplink.items():
        if uplink.clat is None:
            continue
        path, device, prefix = ("uplink", name, "clat"), uplink.clat.device, uplink.clat.prefix
        if device not in uplink.devices[1:]:
            yield (
                (*path, "device"),
                f"{device!r} is not in 'devices' behind a device of the uplink's network; add it at the end",
            )
        if prefix.version != 6 or prefix.prefixlen not in NAT64_LENGTHS:
            yield (
                (*path, "prefix"),
                f"{prefix} is not a NAT64 prefix: IPv6, with a length of {', '.join(map(str, NAT64_LENGTHS))}",
            )
        elif prefix.network_address.is_link_local or prefix.network_address.is_multicast:
            yield (*path, "prefix"), f"packets to {prefix} are never forwarded; use the NAT64 prefix of the network"
