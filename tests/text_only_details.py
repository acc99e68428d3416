"""Details that nft 1.0.6 prints in text only: devices of hooks, flags of tables and of sets."""

import re
from collections.abc import Iterable
from typing import TypeVar

from attrs import evolve

from nftpolicy.netstate import nft

_DEVICE = re.compile(r'\n\tchain (\S+) \{\n(?:\t\tcomment .*\n)?\t\ttype \S+ hook \S+ device "([^"]+)"')
_DEVICES = re.compile(r"\n\tchain (\S+) \{\n(?:\t\tcomment .*\n)?\t\ttype \S+ hook \S+ devices = \{ ([^}]+) \}")
_TABLE_FLAGS_LINE = re.compile(r"\A(?:\tcomment .*\n)?\tflags (\S+)$", re.MULTILINE)
_SET_FLAGS = re.compile(r"\n\t(?:set|map) (\S+) \{\n(?:\t\t(?!flags|elements).*\n)*\t\tflags (\S+)")


def add_hook_devices(table: nft.Table, listing: str) -> nft.Table:
    """Return the table with the devices of its base chains, which nft 1.0.6 prints in text only.

    `listing` is what `nft list table FAMILY NAME` prints.
    """
    devices = {name: frozenset({device}) for name, device in _DEVICE.findall(listing)}
    for name, names in _DEVICES.findall(listing):
        devices[name] = frozenset(device.strip().strip('"') for device in names.split(","))

    def complete(chain: nft.Chain) -> nft.Chain:
        hook = chain.hook
        if hook is None or hook.device or hook.devices or chain.name not in devices:
            return chain
        return evolve(chain, hook=evolve(hook, **_devices_of_hook(devices[chain.name])))

    return evolve(table, chains=tuple(map(complete, table.chains)))


def _devices_of_hook(devices: frozenset[str]) -> dict[str, object]:
    return {"device": next(iter(devices))} if len(devices) == 1 else {"devices": devices}


_SetOrMap = TypeVar("_SetOrMap", nft.Set, nft.Map)


def _with_flags(table: nft.Table, listing: str) -> nft.Table:
    """Return the table with the flags of it and of its sets that nft 1.0.6 omits from its JSON ("dynamic")."""
    table_flags = _TABLE_FLAGS_LINE.search(listing.partition("\n")[2])
    set_flags = {name: frozenset(flags.split(",")) for name, flags in _SET_FLAGS.findall(listing)}

    def complete(item: _SetOrMap) -> _SetOrMap:
        return evolve(item, flags=item.flags | set_flags.get(item.name, frozenset()))

    return evolve(
        table,
        flags=frozenset(table_flags[1].split(",")) if table_flags else table.flags,
        sets=tuple(map(complete, table.sets)),
        maps=tuple(map(complete, table.maps)),
    )


def add_text_only_details(tables: Iterable[nft.Table], listing: str) -> tuple[nft.Table, ...]:
    """Return the tables with details that nft 1.0.6 prints in text only.

    They are: devices of hooks, flags of tables and of sets. `listing` is what `nft list ruleset`
    prints, with or without elements.
    """
    listings: dict[tuple[str, str], str] = {}
    for text in re.split(r"^(?=table )", listing, flags=re.MULTILINE):
        words = text.split(maxsplit=3)
        if len(words) == 4:
            listings[words[1], words[2]] = text

    def complete(table: nft.Table) -> nft.Table:
        text = listings.get(table.key)
        return table if text is None else _with_flags(add_hook_devices(table, text), text)

    return tuple(map(complete, tables))
