"""States of a kernel that an adversary would choose: guards that almost hold, and foreign tables that undo them.

A state is a list of parts, so that a failing one can be reduced part by part. Everything is text in nft's syntax:
nothing of the product writes it.
"""

from collections.abc import Iterator

from attrs import evolve, frozen

from .adversary_rules import CHAINS, Draw, Part, draw_match, draw_optional_match, draw_rule
from .storm_packets import WAN

_GUARDS = ("inet guard last", "netdev guard wire")


@frozen
class State:
    """State of the kernel; `policies` maps "TABLE CHAIN" to the policy of a base chain, accept by default."""

    parts: tuple[Part, ...]
    policies: tuple[tuple[str, str], ...] = ()
    sysctls: tuple[tuple[str, int], ...] = ()

    def text(self) -> str:
        """Return the tables as one transaction for nft."""
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
        table = draw.choice([table for table in CHAINS if "foreign" in table])
        chain = draw.choice(list(CHAINS[table]))
        parts.append(Part(f"{table} {chain}", draw_rule(draw, table, chain)))
        if chain == "further":
            hooked = draw.choice([name for name, hook in CHAINS[table].items() if hook and "nat" not in name])
            parts.append(Part(f"{table} {hooked}", f"{draw_optional_match(draw, table, hooked)} jump further".strip()))
    sysctls = [
        (name, 1)
        for name in ("net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect", "net.ipv4.tcp_fwmark_accept")
        if draw.random() < 0.15
    ]
    return State((*draw.sets, *parts), tuple(policies), tuple(sysctls))


def _draw_guard(draw: Draw, parts: list[Part], policies: list[tuple[str, str]]) -> None:
    """Add the guard of both layers. It holds if no weakening is drawn."""
    for place, device in zip(_GUARDS, (f'oifname "{WAN}" ', ""), strict=True):
        table, chain = place.rsplit(" ", 1)
        for _ in range(draw.choice((0, 0, 0, 1, 1, 2))):
            parts.append(Part(place, _guard_prefix(draw, table, chain)))
        style = draw.randrange(6)
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
        else:
            if device:
                parts.append(Part(place, f'oifname != "{WAN}" accept'))
            parts.append(Part(place, f"{marked} accept"))
            parts.append(Part(place, f"{_weak_match(draw, table, chain)} drop".strip()))


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
    if table.startswith("netdev"):
        everything += ["ether type { ip, ip6, arp }", "ether type != arp", "@ll,96,16 0x0-0xffff"]
    else:
        everything += [
            "ct state { new, established, related, invalid, untracked }",
            "ct state != established",
            "ct direction original",
            "ct mark & 1 == 0",
            "ct mark 0",
            "rt classid 0",
            "socket transparent 0",
        ]
    match = draw.choice(everything)
    return f"{match} {draw.choice(everything)}" if draw.random() < 0.2 else match


def _guard_prefix(draw: Draw, table: str, chain: str) -> str:
    """Return a rule before the guard's test."""
    if draw.random() < 0.5:
        return (
            f"{draw_match(draw, table, chain)} {draw.choice(('accept', 'accept', 'counter accept', 'return', 'drop'))}"
        )
    return draw_rule(draw, table, chain)
