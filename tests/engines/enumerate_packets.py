"""Enumeration of every packet of a small universe: slow and simple."""

import contextlib
from collections.abc import Callable, Sequence

from attrs import evolve

from nftpolicy.model.branching import Choices, explore_branches
from nftpolicy.model.nft.chains import DROP, Ruleset, evaluate_chain
from nftpolicy.model.packet_view import PacketView
from nftpolicy.model.symbolic import field_values, mark_bits
from nftpolicy.model.symbolic.box import Box, Ranges
from nftpolicy.model.symbolic.header_space import HeaderSpace
from nftpolicy.netstate.nft import Chain, Table, symbols
from nftpolicy.proof.spec import Region

from .ruleset_strategies import Question

Place = tuple[Table, Chain]
NO, YES, MAYBE = "no", "yes", "maybe"


class _LeavesChain(Exception):
    """A packet leaves a chain by an unsupported construct."""


class _UnsupportedAsBranch:
    """Choices that make a branch of each unsupported construct: the packet leaves the chain, or nothing happens."""

    def __init__(self, choices: Choices) -> None:
        self.branch_on = choices.branch_on

    def mark_unsupported(self, construct: str) -> None:
        if self.branch_on(construct):
            raise _LeavesChain


def passes(ruleset: Ruleset, view: PacketView, places: Sequence[Place]) -> str:
    """Return "yes", "no" or "maybe": the packet passes all these base chains."""

    def run(choices: Choices) -> str:
        copy = evolve(view)
        for table, chain in places:
            with contextlib.suppress(_LeavesChain):
                if evaluate_chain(ruleset, table, chain, copy, _UnsupportedAsBranch(choices)) == DROP:  # type: ignore[arg-type]
                    return NO
        return YES

    forks = explore_branches(run)
    found = set(forks.results)
    return found.pop() if forks.is_complete and len(found) == 1 else MAYBE


def through(question: Question) -> tuple[list[PacketView], list[PacketView]]:
    """Return the packets of a question's region that pass without permission, and those that may."""
    ruleset = Ruleset(question.tables)
    places = ruleset.base_chains(question.universe.family, question.hook, question.device)
    found: dict[str, list[PacketView]] = {NO: [], YES: [], MAYBE: []}
    for view in question.universe.views():
        if within(view, question.region) and not any(within(view, one) for one in question.allowed):
            found[passes(ruleset, view, places)].append(view)
    return found[YES], found[MAYBE]


# --- a packet as the fields of a region -------------------------------------------------


def within(view: PacketView, region: Region) -> bool:
    """Return True if a packet is in a region."""
    if not all(_has(wanted, FIELDS[name](view)) for name, wanted in region.fields.items()):
        return False
    out, came = view.oif or "", view.iif or ""
    if (region.oifname is not None and out not in region.oifname) or out in region.not_oifname:
        return False
    if (region.iifname is not None and came not in region.iifname) or came in region.not_iifname:
        return False
    marks = {"mark": view.mark, "ctmark": view.ct_mark}
    return all((marks[test.field] & test.mask == test.value) == test.equal for test in region.marks)


def in_box(view: PacketView, box: Box, space: HeaderSpace) -> bool:
    """Return True if a packet is in a box of a space. Fields of unsupported constructs do not count."""
    return all(_has(wanted, _value(view, name, space)) for name, wanted in box.items() if name not in space.unsupported)


def _has(wanted: Ranges, value: int) -> bool:
    return any(low <= value <= high for low, high in wanted)


def _value(view: PacketView, name: str, space: HeaderSpace) -> int:
    of, colon, group = name.partition(":")
    if colon:
        return mark_bits.pack_bits({"mark": view.mark, "ctmark": view.ct_mark}[of], int(group, 16))
    if name in ("iif", "oif"):
        device = view.iif if name == "iif" else view.oif
        return field_values.device_ranges(space.devices, device)[0][0] if device else 0
    if name not in FIELDS and not space.max_values[name]:  # a field that is always the same
        return 0
    if name in space.opaque_values:
        result, _, keys = name.removeprefix("fib ").partition(" of ")
        found = view.fib(result, tuple(keys.split()), view) if view.fib else None
        return space.opaque_values[name].get(found, space.max_values[name]) if found else 0
    return FIELDS[name](view)


def _of_header(*names: tuple[str, str]) -> Callable[[PacketView], int]:
    return lambda view: next((view.fields[name] for name in names if name in view.fields), 0)


def _flag(at: int) -> Callable[[PacketView], int]:
    return lambda view: view.fields.get(("tcp", "flags"), 0) >> at & 1


FIELDS: dict[str, Callable[[PacketView], int]] = {
    "socket": lambda view: int(view.uid is not None),
    "uid": lambda view: view.uid or 0,
    "gid": lambda view: view.gid or 0,
    "protocol": lambda view: view.protocol,
    "saddr": lambda view: view.source,
    "daddr": lambda view: view.destination,
    "sport": lambda view: view.sport,
    "dport": lambda view: view.dport,
    "fragment": lambda view: int(bool(view.fields.get(("ip", "frag-off"), 0))),
    "ethertype": lambda view: view.protocol_number,
    "nfproto": lambda view: view.family,
    "pkttype": lambda view: 0,
    "ct.state": lambda view: field_values.CT_STATES[view.ct_state],
    "ct.direction": lambda view: symbols.CT_DIRECTIONS[view.ct_direction],
    "ttl": _of_header(("ip", "ttl"), ("ip6", "hoplimit")),
    "icmp.type": _of_header(("icmp", "type")),
    "icmpv6.type": _of_header(("icmpv6", "type")),
    **{f"tcp.{name}": _flag(at) for at, name in enumerate(symbols.TCP_FLAGS)},
}
