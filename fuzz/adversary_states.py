"""States of a kernel that an adversary would choose: guards that almost hold, and foreign tables that undo them.

A state is a list of parts, so that a failing one can be reduced part by part. Everything is text for nft and other
programs: nothing of the product writes it.
"""

import re
from collections.abc import Iterator

from attrs import evolve, frozen

from .adversary_draw import CHAINS, Draw, Part, has_flow, is_link_layer
from .adversary_matches import by_several_fields, draw_match, draw_optional_match
from .adversary_programs import draw_extra
from .adversary_rules import draw_rule
from .adversary_xtables import draw_xtables_guard, draw_xtables_rule
from .storm_packets import WAN

_GUARDS = ("inet guard last", "netdev guard wire")


@frozen
class State:
    """State of the kernel; `policies` maps "TABLE CHAIN" to the policy of a base chain, accept by default."""

    parts: tuple[Part, ...]
    policies: tuple[tuple[str, str], ...] = ()
    sysctls: tuple[tuple[str, int], ...] = ()

    def text(self) -> str:
        """Return the tables of nft as one transaction."""
        policies = dict(self.policies)
        lines = []
        for table in CHAINS:
            parts = [part for part in self.parts if part.table == table]
            if not parts:
                continue
            lines.append(f"table {table} {{")
            lines += [f"  {part.text}" for part in parts if not part.is_rule]
            used = {part.place for part in parts if part.is_rule} | {
                place for place in policies if place.startswith(table)
            }
            called = any(f"{verb} further" in part.text for part in parts for verb in ("jump", "goto"))
            for chain, hook in sorted(CHAINS[table].items(), key=lambda item: item[1] is not None):
                place = f"{table} {chain}"
                if place not in used and not (hook is None and called):
                    continue
                lines.append(f"  chain {chain} {{")
                if hook:
                    lines.append(f"    {hook}; policy {policies.get(place, 'accept')};")
                lines += [f"    {part.text}" for part in parts if part.place == place]
                lines.append("  }")
            lines.append("}")
        return "\n".join(lines) + "\n"

    def others(self) -> str:
        """Return the parts that nft does not load, each with its program."""
        return "".join(f"{part.place}: {part.text}\n" for part in self.parts if part.program)

    def __str__(self) -> str:
        return f"{self.text()}{self.others()}{self.sysctls or ''}"

    def reductions(self) -> Iterator["State"]:
        """Yield the state without one of its parts, policies or sysctls."""
        for index in range(len(self.parts)):
            yield evolve(self, parts=self.parts[:index] + self.parts[index + 1 :])
        for index in range(len(self.policies)):
            yield evolve(self, policies=self.policies[:index] + self.policies[index + 1 :])
        for index in range(len(self.sysctls)):
            yield evolve(self, sysctls=self.sysctls[:index] + self.sysctls[index + 1 :])


def draw_state(seed: int) -> State:
    """Return the state of a seed."""
    draw = Draw(seed)
    parts: list[Part] = []
    policies: list[tuple[str, str]] = []
    _draw_guard(draw, parts, policies)
    for _ in range(draw.choice((0, 1, 1, 2, 2, 3, 4))):
        table = draw.choice(_FOREIGN)
        chain = draw.choice(list(CHAINS[table]))
        parts.append(Part(f"{table} {chain}", draw_rule(draw, table, chain)))
        if chain == "further":
            hooked = draw.choice([name for name, hook in CHAINS[table].items() if hook and "nat" not in name])
            parts.append(Part(f"{table} {hooked}", f"{draw_optional_match(draw, table, hooked)} jump further".strip()))
    if draw.random() < 0.01:
        parts.append(Part(draw.choice((*_FOREIGN, "inet guard", "netdev guard")), "flags dormant;"))
    sysctls = [(name, value) for name, value, share in _SYSCTLS if draw.random() < share]
    parts += draw_extra(draw, draw_xtables_rule)
    return State((*draw.declarations, *draw.rules, *parts), tuple(policies), tuple(sysctls))


_FOREIGN = [table for table in CHAINS if "foreign" in table for _ in range(1 if "bridge" in table else 4)]
_SYSCTLS = (  # name, value, share of the states
    ("net.ipv4.fwmark_reflect", 1, 0.15),
    ("net.ipv6.fwmark_reflect", 1, 0.15),
    ("net.ipv4.tcp_fwmark_accept", 1, 0.15),
    ("net.ipv4.conf.wan.src_valid_mark", 1, 0.03),
    ("net.ipv4.conf.mesh.rp_filter", 1, 0.03),
    ("net.ipv4.conf.wan.route_localnet", 1, 0.03),
    ("net.ipv4.conf.mesh.accept_local", 1, 0.03),
)
SYSCTL_DEFAULTS = {name: 0 for name, _, _ in _SYSCTLS}


def weaken(state: State, seed: int) -> State:
    """Return a state with one change: a part removed, weaker, replaced or moved, or a policy removed."""
    draw = Draw(seed)
    parts = list(state.parts)
    if state.policies and draw.random() < 0.1:
        return evolve(state, policies=state.policies[1:])
    index = draw.randrange(len(parts))
    changed = _change_text(draw, parts[index].text)
    kind = draw.random()
    if kind < 0.25 or not parts[index].is_rule:
        del parts[index]
    elif kind < 0.7 and changed is not None:
        parts[index] = evolve(parts[index], text=changed)
    elif kind < 0.85:
        table, chain = parts[index].place.rsplit(" ", 1)
        parts.insert(index, Part(parts[index].place, draw_rule(draw, table, chain)))
        declarations = [evolve(each, text=_renamed(each.text)) for each in draw.declarations]
        parts[index] = evolve(parts[index], text=_renamed(parts[index].text))
        parts = [*declarations, *[evolve(each, text=_renamed(each.text)) for each in draw.rules], *parts]
    else:
        parts.insert(draw.randrange(len(parts)), parts.pop(index))
    return evolve(state, parts=tuple(parts))


def _renamed(text: str) -> str:
    """Return the text with other names of sets, maps and objects than those of the state before."""
    return re.sub(r"\b(set|map|object)(\d+)\b", r"\1\g<2>x", text)


_WEAKER = (  # what a guard has, and what is a little weaker or only looks so
    (" drop", " accept"), (" drop", " counter"), (" drop", " return"), (" drop", ""), (" drop", " reject"),
    ("& 1 == 0", "& 1 == 1"), ("& 1 == 0", "& 3 == 0"), ("& 1 == 0", "< 1"), ("& 1 == 0", "0"), ("& 1 != 1", "!= 1"),
    ("& 1 == 1", "!= 0"), ("& 1 == 1", "& 3 != 0"), ("& 1 != 0", "& 3 != 0"), ("and 0x1 == 0x1", "and 0x3 == 0x3"),
    (f'oifname "{WAN}" ', f'oifname "{WAN}" meta nfproto ipv4 '), (f'oifname "{WAN}" ', 'oifname "w*" '),
    (f'oifname "{WAN}" ', f'oifname "{WAN}" meta l4proto != 253 '), (f'oifname != "{WAN}"', 'oifname != "wax"'),
    ("meta mark", "ct mark"), ("set 2", "set 3"), ("set 2", "set 1"), ("set 0", "set 1"), ("!= ", ""), (" ==", " !="),
    ("== ", "!= "), ("accept", "return"), ("return", "accept"), ("continue", "accept"), ("17", "6"), ("udp", "tcp"),
    ("ip ", "ip6 "), ("| 2", "| 1"), ("meta mark & 1", "meta mark & 0x10"), ("jump ", "goto "), ("new", "established"),
    ("drop", "meta mark set 1"), ("drop", "meta mark set 2 drop"), ("accept", "meta mark set 2 accept"),
    ("0-255", "0-252"), ("0-65535", "0-1500"), ("pkttype host", "pkttype != host"), ("over ", ""),
)  # fmt: skip


def _change_text(draw: Draw, text: str) -> str | None:
    """Return a rule with one weaker word, or without its first match; None if it has no such word."""
    options = [text.replace(old, new, 1) for old, new in _WEAKER if old in text]
    return draw.choice(options) if options else None


def _draw_guard(draw: Draw, parts: list[Part], policies: list[tuple[str, str]]) -> None:
    """Add the guard of both layers. It holds if no weakening is drawn."""
    for place, device in zip(_GUARDS, (f'oifname "{WAN}" ', ""), strict=True):
        table, chain = place.rsplit(" ", 1)
        if device and draw.random() < 0.06:
            parts += draw_xtables_guard(draw)
            continue
        for _ in range(draw.choice((0, 0, 0, 1, 1, 2))):
            parts.append(Part(place, _guard_prefix(draw, table, chain)))
        style = draw.randrange(8)
        marked = draw.choice(("meta mark & 1 == 1", "meta mark and 0x1 == 0x1", "meta mark & 1 != 0"))
        unmarked = draw.choice(("meta mark & 1 == 0", "meta mark & 1 != 1"))
        if style <= 1:
            parts.append(Part(place, f"{device}{unmarked} drop"))
        elif style == 2 and not device:
            parts.append(Part(place, f"{marked} accept"))
            policies.append((place, "drop"))
        elif style == 3:
            parts += [Part(place, f"{device}jump further"), Part(f"{table} further", f"{marked} accept")]
            parts.append(Part(f"{table} further", f"{_weak_match(draw, table, chain)} drop"))
        elif style == 4:
            parts.append(Part(place, f"{device}{unmarked} {_weak_match(draw, table, chain)} drop"))
            parts.append(Part(place, f"{device}{unmarked} {_weak_match(draw, table, chain)} drop"))
        elif style == 5:
            entries = draw.choice(_MARK_VERDICTS)
            parts.append(Part(place, f"{device}meta mark & {draw.choice((1, 1, 1, 3))} vmap {{ {entries} }}"))
        elif style == 6:
            parts.append(Part(place, f"{device}{unmarked} jump {{ {_weak_match(draw, table, chain)} drop; }}"))
        else:
            if device:
                parts.append(Part(place, f'oifname != "{WAN}" accept'))
            parts.append(Part(place, f"{marked} accept"))
            parts.append(Part(place, f"{_weak_match(draw, table, chain)} drop".strip()))


_MARK_VERDICTS = ("0 : drop", "0 : drop, 1 : accept", "1 : accept, 0 : drop, 2 : drop", "0 : drop, 2 : drop",
                  "0 : jump further", "0-0xfe : drop", "0 : drop, 2 : continue")  # fmt: skip


def _weak_match(draw: Draw, table: str, chain: str) -> str:
    """Return a match that may hold for all packets, or for nearly all."""
    if draw.random() < 0.3:
        return ""
    everything = [
        "meta l4proto 0-255",
        "meta length 0-65535",
        "meta mark & 1 != 1",
        "meta mark < 0xffffffff",
        "meta pkttype { host, broadcast, multicast, other }",
        "meta pkttype host",
        "meta protocol { ip, ip6, arp }",
        "meta protocol != arp",
        "meta nfproto { ipv4, ipv6 }" if table.startswith("inet") else "meta protocol { ip, ip6 }",
        "meta l4proto != 250",
        "meta l4proto { tcp, udp, icmp, ipv6-icmp }",
        "meta skuid 0-4294967294",
        "meta skgid != 4711",
        "meta priority 0-0xffffffff" if table.startswith("inet") else "meta l4proto 0-255",
        "limit rate 100000/second burst 1000 packets",
        "limit rate over 1/second burst 1 packets",
        "quota over 1 bytes",
        "quota 100 mbytes",
        "meta iif 0" if table.startswith("netdev") else 'meta iifkind != "nothing"',
    ]
    if draw.random() < 0.15:
        return _changed_set(draw, table, chain)
    if draw.random() < 0.1:
        return by_several_fields(draw, table, chain)
    if is_link_layer(table):
        everything += [
            "ether type { ip, ip6, arp }",
            "ether type != arp",
            "@ll,96,16 0x0-0xffff",
            "ether type != vlan",
            "meta protocol . ether type { ip . ip, ip6 . ip6, arp . arp }",
            "ether saddr != 02:00:5e:00:53:99",
        ]
    elif has_flow(table, chain):
        everything += [
            "ct state { new, established, related, invalid, untracked }",
            "ct state != established",
            "ct direction original",
            "ct mark & 1 == 0",
            "ct mark 0",
            "rt classid 0",
            "socket transparent 0",
            "ct state & (new | established | related | invalid | untracked) != 0",
            "ct mark & 1 != 1",
            "ct zone 0",
            "ct status ! dnat",
            "fib daddr type != local",
            "ct count over 0",
        ]
    match = draw.choice(everything)
    return f"{match} {draw.choice(everything)}" if draw.random() < 0.2 else match


def _changed_set(draw: Draw, table: str, chain: str) -> str:
    """Return a look-up in a set to which an earlier rule adds what it looks for, always or nearly always."""
    key = draw.choice(("meta l4proto", "meta protocol", "meta mark", "meta length"))
    size = draw.choice((65535, 65535, 2))
    options = draw.choice(("", "; timeout 1h", "; counter", "; limit rate over 1/second", "; limit rate 100000/second"))
    flags = "dynamic, timeout" if "timeout" in options else "dynamic"
    name = draw.add_set(table, f"typeof {key}; size {size}; flags {flags}{options}")
    before = draw.choice(("", "", "", "meta l4proto != 250 ", "limit rate 100000/second "))
    draw.add_rule(table, chain, f"{before}{draw.choice(('add', 'update'))} @{name} {{ {key} }}")
    if draw.random() < 0.2:
        draw.add_rule(table, chain, f"delete @{name} {{ {key} }}")
    return f"{key} @{name}"


def _guard_prefix(draw: Draw, table: str, chain: str) -> str:
    """Return a rule before the guard's test."""
    if draw.random() < 0.5:
        return (
            f"{draw_match(draw, table, chain)} {draw.choice(('accept', 'accept', 'counter accept', 'return', 'drop'))}"
        )
    return draw_rule(draw, table, chain)
