# SPDX-License-Identifier: BSD-2-Clause
"""Network state from files: saved output of nft and ip, so that no kernel is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from attrs import evolve

from ..netstate import nft
from ..netstate.formats import ip_json_decode, nft_json_decode
from ..netstate.formats.json_text import describe_json_error, parse_json
from ..netstate.state import NetState
from .common import EXIT_BAD_INPUT, Failure, read_input

Decoded = TypeVar("Decoded")
CHAIN_DEVICE_ALONE = "--chain-device completes --ruleset, which is missing"
_CHAIN_DEVICE_FORM = "'FAMILY TABLE CHAIN=DEVICE', such as 'netdev filter out=eth0'"
_PATH_WORDS = 3
_MOST_CHARACTERS = 300  # of a message of a decoder


def state_from_files(
    ruleset: Path | None, rules: Iterable[str], routes: Iterable[str], chain_devices: Iterable[str] = ()
) -> NetState:
    """Return the state in these files; without a file that part is empty.

    A file of rules or routes has one family: that of its prefix ("4:FILE", "6:FILE"), or of
    its addresses. `chain_devices` ("FAMILY TABLE CHAIN=DEVICE[,DEVICE]") are the devices of chains
    at ingress or egress, which nft 1.0.6 does not print.

    Raises:
        Failure: a file cannot be read, or is not the output of the command; or the ruleset has no
            such chain, or has its devices.
    """
    tables = _read(str(ruleset), nft_json_decode.decode_ruleset, "nft -j list ruleset") if ruleset else ()
    for option in chain_devices:
        tables = _with_chain_devices(tables, option)
    return NetState(
        tables=tables,
        rules=tuple(
            rule for file in rules for rule in _read_family(file, ip_json_decode.decode_rules, "ip -j -N rule")
        ),
        routes=tuple(
            route
            for file in routes
            for route in _read_family(file, ip_json_decode.decode_routes, "ip -j -N route show table all")
        ),
    )


def _with_chain_devices(tables: tuple[nft.Table, ...], option: str) -> tuple[nft.Table, ...]:
    """Return the tables with the devices of a --chain-device option on its chain."""
    path, _, names = option.partition("=")
    devices = frozenset(filter(None, names.split(",")))
    words = tuple(path.split())
    if len(words) != _PATH_WORDS or not devices:
        raise Failure(f"--chain-device {option!r}: expected {_CHAIN_DEVICE_FORM}", EXIT_BAD_INPUT)
    chains = [
        (table.family, table.name, chain.name)
        for table in tables
        for chain in table.chains
        if chain.hook is not None and chain.hook.needs_device
    ]
    if words not in chains:
        known = ", ".join(repr(" ".join(chain)) for chain in chains) or "none"
        raise Failure(
            f"--chain-device {option!r}: the ruleset has no such chain without a device; those without: {known}",
            EXIT_BAD_INPUT,
        )
    return tuple(
        evolve(
            table,
            chains=tuple(
                evolve(chain, hook=chain.hook.with_devices(devices))
                if chain.hook is not None and (table.family, table.name, chain.name) == words
                else chain
                for chain in table.chains
            ),
        )
        for table in tables
    )


def _read_family(file: str, decode: Callable[[Any, int | None], Decoded], command: str) -> Decoded:
    family, colon, name = file.partition(":")
    if colon and family in ("4", "6"):
        return _read(name, lambda document: decode(document, int(family)), command)

    def decode_by_addresses(document: Any) -> Decoded:
        try:
            return decode(document, None)
        except ValueError as error:
            if not _is_valid(document, decode):
                raise
            raise ValueError(f"{error}; write 4:FILE or 6:FILE") from None

    return _read(file, decode_by_addresses, command)


def _is_valid(document: Any, decode: Callable[[Any, int | None], Decoded]) -> bool:
    """Return True if the document can be decoded once its family is known."""
    try:
        decode(document, 4)
    except ValueError:
        return False
    return True


def _read(file: str, decode: Callable[[Any], Decoded], command: str) -> Decoded:
    data, name = read_input(Path(file))
    try:
        document = parse_json(data)
    except (ValueError, RecursionError) as error:  # invalid UTF-8 too
        message = f"not the JSON that '{command}' prints: {describe_json_error(data, error)[:_MOST_CHARACTERS]}"
        raise Failure(f"{name}: {message}", EXIT_BAD_INPUT) from None
    try:
        return decode(document)
    except ValueError as error:
        message = f"not what '{command}' prints: {_shorten(error)}"
        raise Failure(f"{name}: {message}", EXIT_BAD_INPUT) from None


def _shorten(error: Exception) -> str:
    """Return the message in one line; decoders quote parts of the file."""
    message = str(error).replace("\n", " ")
    return message if len(message) < _MOST_CHARACTERS else message[:_MOST_CHARACTERS] + "..."
