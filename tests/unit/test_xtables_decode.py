"""What the rules of legacy iptables, ip6tables, arptables and ebtables can do to a packet, from their bytes."""

import struct

import pytest

from nftpolicy.netstate.bypass import ANY_EFFECT, Effect, HeaderWrite, MarkWrite, Stop
from nftpolicy.netstate.formats.xtables_decode import (
    ARP,
    IPV4,
    IPV6,
    Extension,
    Layout,
    LegacyTable,
    bridge_table_actors,
    match_effects,
    table_actors,
    target_effects,
)

FULL = 0xFFFFFFFF


def words(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}I", *numbers)


def connmark(value: int, flow_mask: int, packet_mask: int, mode: int, shift: int = 0) -> Extension:
    return Extension("CONNMARK", 2, words(value, flow_mask, packet_mask) + bytes((0, shift, mode, 0)))


NOTHING: tuple[Effect, ...] = ()
STOP: tuple[Effect, ...] = (Stop(),)
ANY_MARK = (MarkWrite(),)
TARGETS = [
    *((Extension("", 0, words(verdict & FULL)), NOTHING) for verdict in (-2, -5, 0, 480)),  # ACCEPT, RETURN, jumps
    *((Extension("", 0, words(verdict & FULL)), STOP) for verdict in (-1, -4)),  # DROP, QUEUE
    (Extension("", 0, b""), STOP),
    *((Extension(name, 0, b""), STOP) for name in ("REJECT", "SYNPROXY")),
    *((Extension(name, 0, b""), NOTHING) for name in ("LOG", "NFLOG", "CT", "CLASSIFY", "TRACE", "NOTRACK")),
    (Extension("TTL", 0, b""), (HeaderWrite(),)),
    (Extension("TCPMSS", 0, b""), (HeaderWrite(),)),
    *(
        (Extension(name, 0, b""), tuple(HeaderWrite(hook=hook, is_nat=True) for hook in hooks))
        for name, hooks in {
            "DNAT": ("prerouting", "output"),
            "REDIRECT": ("prerouting", "output"),
            "SNAT": ("input", "postrouting"),
            "MASQUERADE": ("postrouting",),
        }.items()
    ),
    *((Extension(name, 0, b""), ANY_EFFECT) for name in ("TEE", "NFQUEUE", "QUEUE", "HMARK", "WHATEVER", "mark")),
    (Extension("MARK", 2, words(1, FULL)), (MarkWrite(FULL, 1, 0),)),
    (Extension("MARK", 2, words(0x40000, 0xFF0000)), (MarkWrite(0xFF0000, 0x40000, 0),)),
    (Extension("MARK", 2, words(3, 1)), (MarkWrite(1, 1, 2),)),  # --set-xmark 3/1 toggles bit 1
    (Extension("MARK", 2, words(1)), ANY_MARK),
    (Extension("MARK", 1, words(1, FULL)), ANY_MARK),
    (connmark(1, 0xFF, 0, 0), (MarkWrite(0xFF, 1, 0, "ctmark"),)),
    (connmark(0, 0xF0, 0x0F, 1), (MarkWrite(varied=0xFF, field="ctmark"),)),
    (connmark(0, 0xF0, 0xF0, 2), (MarkWrite(varied=0xF0),)),
    (connmark(0, 0xF0, 0xF0, 2, shift=4), (MarkWrite(), MarkWrite(field="ctmark"))),
    (connmark(0, 0xF0, 0xF0, 3), (MarkWrite(), MarkWrite(field="ctmark"))),
    (Extension("CONNMARK", 1, words(0, 15, 15) + b"\2"), (MarkWrite(varied=15),)),
    (Extension("CONNMARK", 3, words(0, 15, 15) + b"\2"), (MarkWrite(), MarkWrite(field="ctmark"))),
    (Extension("TPROXY", 1, words(0x10, 0x10)), (MarkWrite(0x10, 0x10, 0),)),
    (Extension("TPROXY", 1, b""), ANY_MARK),
    (Extension("SET", 2, bytes(16)), NOTHING),
    (Extension("SET", 3, bytes(8) + b"\xff\xff" + bytes(14)), NOTHING),
    (Extension("SET", 3, bytes(8) + b"\x02\x00" + bytes(14)), ANY_MARK),
    (Extension("SET", 3, b""), ANY_MARK),
]


@pytest.mark.parametrize(("target", "effects"), TARGETS, ids=lambda value: getattr(value, "name", ""))
def test_target_effects_depend_on_name_and_data(target: Extension, effects: tuple[Effect, ...]) -> None:
    assert target_effects(target) == effects


@pytest.mark.parametrize(
    ("match", "effects"),
    [
        (Extension("conntrack", 3, bytes(8)), NOTHING),
        (Extension("socket", 2, b"\x04"), NOTHING),  # the flag is of revision 3
        (Extension("socket", 3, b"\x03"), NOTHING),
        (Extension("socket", 3, b"\x04"), ANY_MARK),
        (Extension("socket", 3, b""), ANY_MARK),
    ],
)
def test_only_match_socket_has_an_effect(match: Extension, effects: tuple[Effect, ...]) -> None:
    assert match_effects(match) == effects


@pytest.mark.parametrize(
    ("write", "mark", "mask", "may"),
    [
        (MarkWrite(), 1, 1, True),
        (MarkWrite(FULL, 1, 0), 1, 1, True),
        (MarkWrite(FULL, 0x4000, 0), 1, 1, False),  # the bit becomes 0
        (MarkWrite(0xFF0000, 0x40000, 0), 1, 1, False),  # other bits
        (MarkWrite(1, 1, 0), 1, 3, True),  # one of two bits; the other may be right already
        (MarkWrite(3, 3, 0), 1, 3, False),
        (MarkWrite(1, 1, 2), 3, 3, True),
        (MarkWrite(0, 0, 2), 1, 1, False),
    ],
)
def test_mark_write_is_compared_with_uplink_mark(write: MarkWrite, mark: int, mask: int, may: bool) -> None:
    assert write.may_set(mark, mask) is may


# --- tables --------------------------------------------------------------------------------------


def extension(name: str, data: bytes, revision: int = 0) -> bytes:
    data += bytes(-len(data) % 8)
    return struct.pack("=H29sB", 32 + len(data), name.encode(), revision) + data


def entry(layout: Layout, target: bytes, *matches: bytes) -> bytes:
    before = layout.header_size + sum(map(len, matches))
    header = bytearray(layout.header_size)
    struct.pack_into("=HH", header, layout.offsets, before, before + len(target))
    return bytes(header) + b"".join(matches) + target


ACCEPT, DROP = extension("", words(FULL - 1)), extension("", words(FULL))
MARK = extension("MARK", words(1, FULL), 2)


@pytest.mark.parametrize(("layout", "option"), [(IPV4, "iptables"), (IPV6, "ip6tables"), (ARP, "arptables")])
def test_table_names_rule_and_chain_of_each_effect(layout: Layout, option: str) -> None:
    parts = [
        entry(layout, ACCEPT),
        entry(layout, MARK, extension("socket", b"\x04", 3), extension("udp", bytes(8))),
        entry(layout, ACCEPT),
        entry(layout, extension("LOG", bytes(32))),
        entry(layout, ACCEPT),
        entry(layout, extension("ERROR", b"user".ljust(30, b"\0"))),
        entry(layout, extension("TEE", bytes(16))),
        entry(layout, extension("ERROR", b"ERROR".ljust(30, b"\0"))),
    ]
    forward = sum(map(len, parts[:3]))
    actors, count = table_actors(layout, LegacyTable("mangle", b"".join(parts), {"output": 0, "forward": forward}))
    assert [actor.location for actor in actors] == [
        f"{option} -t mangle: rule 2 of OUTPUT (socket)",
        f"{option} -t mangle: rule 2 of OUTPUT (MARK)",
        f"{option} -t mangle: rule 1 of user (TEE)",
    ]
    assert count == 6


def test_header_write_is_at_each_hook_of_its_table() -> None:
    raw = entry(IPV4, extension("NETMAP", bytes(24))) + entry(IPV4, extension("SNAT", bytes(24)))
    table = LegacyTable("nat", raw, {"output": 0, "postrouting": 0})
    ((everywhere, source), _) = table_actors(IPV4, table)
    assert everywhere.effects == (HeaderWrite(4, "output", -100, True), HeaderWrite(4, "postrouting", 100, True))
    assert source.effects == (HeaderWrite(4, "postrouting", 100, True),)


def test_stop_is_at_the_hook_of_its_base_chain() -> None:
    own_chain = entry(IPV4, extension("ERROR", b"user".ljust(30, b"\0")))
    raw = entry(IPV4, DROP) + entry(IPV4, ACCEPT) + entry(IPV4, DROP) + own_chain + entry(IPV4, DROP)
    forward = len(entry(IPV4, DROP)) * 2
    actors, _ = table_actors(IPV4, LegacyTable("filter", raw, {"output": 0, "forward": forward}))
    effects = [actor.effects for actor in actors]
    assert effects == [(Stop(4, "output"),), (Stop(4, "forward"),), (Stop(4, "output"), Stop(4, "forward"))]
    assert table_actors(ARP, LegacyTable("filter", entry(ARP, DROP), {"output": 0}))[0] == []


@pytest.mark.parametrize("cut", [1, 20, 100, 113, 140])
def test_table_that_ends_too_early_is_an_error(cut: int) -> None:
    whole = entry(IPV4, MARK)
    with pytest.raises(ValueError, match=r"too early|outside"):
        table_actors(IPV4, LegacyTable("mangle", whole[:cut], {"output": 0}))


def test_rule_with_offset_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match="outside"):
        table_actors(IPV4, LegacyTable("mangle", bytes(IPV4.header_size), {"output": 0}))


# --- ebtables ------------------------------------------------------------------------------------

CHAIN_SIZE, RULE_SIZE, OFFSETS = 48, 112, 100  # struct ebt_entries and ebt_entry on 64 bits


def chain(name: str) -> bytes:
    return struct.pack("=I32sIiI", 0, name.encode(), 0, -1, 1)


def bridge_extension(name: str, data: bytes) -> bytes:
    data += bytes(-len(data) % 8)
    return struct.pack("=31sBI4x", name.encode(), 0, len(data)) + data


def bridge_rule(target: bytes, watchers: bytes = b"", matches: bytes = b"") -> bytes:
    header = bytearray(RULE_SIZE)
    before = RULE_SIZE + len(matches)
    struct.pack_into("=I", header, 0, 1)
    offsets = (before, before + len(watchers), before + len(watchers) + len(target))
    struct.pack_into("=III", header, OFFSETS, *offsets)
    return bytes(header) + matches + watchers + target


def bridge_mark(mark: int, action: int) -> bytes:
    return bridge_extension("mark", struct.pack("=Qi", mark, action))


@pytest.mark.skipif(struct.calcsize("P") != 8, reason="the bytes are those of a 64 bit kernel")
@pytest.mark.parametrize(
    ("target", "effects"),
    [
        (bridge_extension("standard", struct.pack("=i", -1)), NOTHING),
        (bridge_extension("snat", bytes(12)), NOTHING),
        (bridge_extension("unheard", bytes(8)), ANY_EFFECT),
        (bridge_mark(1, -16 | 15), (MarkWrite(FULL, 1, 0),)),
        (bridge_mark(1, -32 | 15), (MarkWrite(1, 1, 0),)),
        (bridge_mark(0xF0, -48 | 15), (MarkWrite(FULL ^ 0xF0, 0, 0),)),
        (bridge_mark(1, -64 | 15), (MarkWrite(varied=1),)),
    ],
)
def test_bridge_target_effects_depend_on_name_and_data(target: bytes, effects: tuple[Effect, ...]) -> None:
    watcher, match = bridge_extension("log", bytes(32)), bridge_extension("mark_m", bytes(24))
    raw = chain("FORWARD") + chain("user") + bridge_rule(ACCEPTED) + bridge_rule(target, watcher, match)
    actors, count = bridge_table_actors("nat", raw)
    assert [actor.effects for actor in actors] == ([effects] if effects else [])
    assert all(actor.location.startswith("ebtables -t nat: rule 2 of user (") for actor in actors)
    assert count == 2
    for cut in (4, CHAIN_SIZE * 2 + 50, len(raw) - 1):
        with pytest.raises(ValueError, match=r"too early|outside"):
            bridge_table_actors("nat", raw[:cut])


ACCEPTED = bridge_extension("standard", struct.pack("=i", -1))
