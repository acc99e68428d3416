# SPDX-License-Identifier: BSD-2-Clause
"""Tests of protocols that nft leaves out of a listing, where the kernel may execute others.

`meta l4proto ipv6-icmp icmpv6 type X` is listed like `icmpv6 type X`, which tests the family too;
`ether type ip ip daddr X` like `ip daddr X`, which tests `meta protocol`; `ip6 nexthdr udp udp dport X`
in a table of family ip6 like `udp dport X`, which tests `meta l4proto`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import attrs

from .. import nft

# Family of tables in which a header implies nothing that its listing can hide.
_SAFE_FAMILIES = {"icmp": ("ip",), "igmp": ("ip",), "icmpv6": ("ip6",)}
_NETWORKS = frozenset({"ip", "ip6", "arp"})
_TRANSPORTS = frozenset({"th", "tcp", "udp", "udplite", "sctp", "dccp", "esp", "ah", "comp"})
_MOST_EXAMPLES = 3


def hidden_tests(tables: Iterable[nft.Table]) -> tuple[str, ...]:
    """Return the assumption that listed tables need, as text; empty if their listing hides nothing."""
    fields = dict.fromkeys(
        f"{field.protocol} {field.name} ({table.family} {table.name} {chain.name})"
        for table in tables
        for chain in table.chains
        for rule in chain.rules
        for field in _payload_fields(rule.statements)
        if _can_hide(field, table.family)
    )
    if not fields:
        return ()
    examples = ", ".join([*fields][:_MOST_EXAMPLES]) + (", ..." if len(fields) > _MOST_EXAMPLES else "")
    return (f"the rules test the protocols that nft implies before {examples}: its listing leaves out other tests",)


def _can_hide(field: nft.Payload, family: str) -> bool:
    if field.protocol in _SAFE_FAMILIES:
        return family not in _SAFE_FAMILIES[field.protocol]
    if field.protocol in _NETWORKS:
        return family in ("netdev", "bridge")
    return field.protocol in _TRANSPORTS and family == "ip6"


def _payload_fields(value: object) -> Iterator[nft.Payload]:
    """Yield the named header fields in statements."""
    if isinstance(value, nft.Payload):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _payload_fields(part)
    elif attrs.has(type(value)):
        for attribute in attrs.fields(cast(type[attrs.AttrsInstance], type(value))):
            yield from _payload_fields(getattr(value, attribute.name))
