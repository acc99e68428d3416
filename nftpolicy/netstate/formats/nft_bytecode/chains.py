# SPDX-License-Identifier: BSD-2-Clause
"""Chains, tables, objects and flowtables of the kernel (include/uapi/linux/netfilter/nf_tables.h)."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from ... import nft
from . import effects
from .attributes import Attributes, UnsupportedBytecode, decode, decode_text, named_bits, split_attributes

FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # NFPROTO_*
_IP_HOOKS = {0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting", 5: "ingress"}
HOOKS: Mapping[str, Mapping[int, str]] = {
    "ip": _IP_HOOKS,
    "ip6": _IP_HOOKS,
    "inet": _IP_HOOKS,
    "bridge": {**_IP_HOOKS, 5: "brouting"},
    "arp": {0: "input", 1: "output"},
    "netdev": {0: "ingress", 1: "egress"},
}
_TABLE_FLAGS = {1: "dormant", 2: "owner", 4: "persist"}
_CHAIN_FLAGS = {1: "base", 2: "offload", 4: "binding"}
_POLICIES = {0: "drop", 1: "accept"}
_DEVICE_NAME, _DEVICE_PREFIX = 1, 2
_PRIORITY_SIGN = 1 << 31


@frozen
class RawChain:
    """A chain without its rules."""

    table: str
    chain: nft.Chain
    is_offloaded: bool


def decode_table(raw: bytes) -> tuple[str, frozenset[str]]:
    """Return name and flags of a table. Raises UnsupportedBytecode."""
    return decode(raw, _table)


def _table(attributes: Attributes) -> tuple[str, frozenset[str]]:
    attributes.ignore(3, 4, 5, 6, 7)  # number of uses, handle, padding, user data, owner
    name, flags = attributes.text(1), attributes.number(2, 0)
    try:
        return name, named_bits(flags, _TABLE_FLAGS)
    except UnsupportedBytecode:
        return name, frozenset({"unnamed"})


def decode_chain(raw: bytes, family: str) -> RawChain:
    """Return a chain. Raises UnsupportedBytecode."""
    return decode(raw, lambda attributes: _chain(attributes, family))


def _chain(attributes: Attributes, family: str) -> RawChain:
    attributes.ignore(2, 6, 8, 9, 11, 12)  # handle, number of uses, counters, padding, number, user data
    table, name = attributes.text(1), attributes.text(3)
    flags = attributes.flags(10, _CHAIN_FLAGS)
    hook = attributes.take(4)
    policy = attributes.choice(5, _POLICIES, 1)
    kind = attributes.take(7)
    if hook is None:
        if kind is not None or "base" in flags:
            raise UnsupportedBytecode(f"base chain {name} without a hook")
        return RawChain(table, nft.Chain(name), "offload" in flags)
    return RawChain(
        table, nft.Chain(name, (), _hook(hook, family, decode_text(kind or b""), policy)), "offload" in flags
    )


def _hook(raw: bytes, family: str, kind: str, policy: str) -> nft.Hook:
    def decode_hook(attributes: Attributes) -> nft.Hook:
        hook, priority = attributes.choice(1, HOOKS[family]), _signed(attributes.number(2))
        device, devices = attributes.take(3), attributes.take(4)
        names = device_names(devices)
        if not names and device is not None:  # repeats the only entry of the list
            names = frozenset({decode_text(device)})
        if len(names) == 1:
            return nft.Hook(kind, hook, priority, policy, device=next(iter(names)))
        return nft.Hook(kind, hook, priority, policy, devices=names)

    return decode(raw, decode_hook)


def device_names(raw: bytes | None) -> frozenset[str]:
    """Return the names of devices in a list; a prefix ends in an asterisk. Raises UnsupportedBytecode."""
    names: set[str] = set()
    for kind, value in split_attributes(raw or b""):
        if kind not in (_DEVICE_NAME, _DEVICE_PREFIX):
            raise UnsupportedBytecode(f"a device in the form {kind}")
        text = decode_text(value)
        names.add(f"{text.removesuffix('*')}*" if kind == _DEVICE_PREFIX else text)
    return frozenset(names)


def _signed(number: int) -> int:
    return number - 2 * _PRIORITY_SIGN if number >= _PRIORITY_SIGN else number


def decode_flowtable(raw: bytes) -> tuple[str, nft.Flowtable]:
    """Return the name of the table, and the flowtable. Raises UnsupportedBytecode."""
    return decode(raw, _flowtable)


def _flowtable(attributes: Attributes) -> tuple[str, nft.Flowtable]:
    attributes.ignore(4, 5, 6)  # number of uses, handle, padding
    attributes.flags(7, {1: "offload", 2: "counter"})
    table, name = attributes.text(1), attributes.text(2)

    def decode_hook(hook: Attributes) -> nft.Flowtable:
        number = hook.choice(1, HOOKS["netdev"], 0)
        return nft.Flowtable(name, _signed(hook.number(2, 0)), device_names(hook.take(3)), number)

    return table, decode(attributes.take(3), decode_hook)


Object = nft.NamedCounter | nft.NamedObject


def decode_object(raw: bytes) -> tuple[str, Object | str]:
    """Return the name of the table, and the object, or its description if it is unsupported.

    Raises UnsupportedBytecode.
    """
    return decode(raw, _object)


def _object(attributes: Attributes) -> tuple[str, Object | str]:
    attributes.ignore(5, 6, 7, 8)  # number of uses, handle, padding, user data
    table, name, kind = attributes.text(1), attributes.text(2), attributes.number(3)
    data = attributes.take(4)
    match kind:
        case 1:
            decode(data, effects.counter)
            return table, nft.NamedCounter(name)
        case 2:
            return table, nft.NamedObject(name, decode(data, effects.quota))
        case 3:
            return table, nft.NamedObject(name, decode(data, _ct_helper))
        case 4:
            return table, nft.NamedObject(name, decode(data, effects.limit))
    title = effects.OBJECTS.get(kind, f"object of type {kind}")
    return table, f'{{"{title}":{{"data":"{(data or b"").hex()}","name":"{name}"}}}}'


def _ct_helper(attributes: Attributes) -> nft.CtHelper:
    family = attributes.choice(2, {1: "inet", 2: "ip", 10: "ip6"}, 1)
    protocol = attributes.number(3)
    return nft.CtHelper(attributes.text(1), nft.PROTOCOL_NAMES.get(protocol, str(protocol)), family)
