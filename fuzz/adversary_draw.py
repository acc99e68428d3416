"""Places of the parts of a random state, and the random choices that fill them."""

import random

from attrs import frozen

from .storm_packets import MESH, WAN

# Table -> chain -> its hook; None: a regular chain.
CHAINS: dict[str, dict[str, str | None]] = {
    "inet guard": {
        "last": "type filter hook postrouting priority 300",
        "further": None,
    },
    "netdev guard": {
        "wire": f'type filter hook egress device "{WAN}" priority 300',
        "further": None,
    },
    "inet foreign": {
        "raw": "type filter hook prerouting priority -300",
        "arrival": "type filter hook prerouting priority -150",
        "input": "type filter hook input priority 0",
        "forward": "type filter hook forward priority 0",
        "early": "type filter hook output priority -300",
        "route": "type route hook output priority -150",
        "output": "type filter hook output priority 0",
        "post": "type filter hook postrouting priority 150",
        "after": "type filter hook postrouting priority 400",
        "natpre": "type nat hook prerouting priority -100",
        "natout": "type nat hook output priority -100",
        "natpost": "type nat hook postrouting priority 100",
        "further": None,
    },
    "ip foreign": {
        "output": "type filter hook output priority -10",
        "post": "type filter hook postrouting priority -10",
    },
    "ip6 foreign": {
        "output": "type filter hook output priority -10",
        "post": "type filter hook postrouting priority -10",
    },
    "netdev foreign": {
        "wire": f'type filter hook egress device "{WAN}" priority 0',
        "after": f'type filter hook egress device "{WAN}" priority 400',
        "other": f'type filter hook egress device "{MESH}" priority 0',
        "ingress": f'type filter hook ingress device "{WAN}" priority 0',
        "mesh": f'type filter hook ingress device "{MESH}" priority 0',
        "further": None,
    },
    "bridge foreign": {
        "input": "type filter hook input priority 0",
        "forward": "type filter hook forward priority 0",
        "output": "type filter hook output priority 0",
        "post": "type filter hook postrouting priority 0",
    },
}
BEFORE_CONNTRACK = ("raw", "early")
EARLIER_FLOW = "flow"  # place of the flows that exist before the state is loaded


@frozen
class Part:
    """Part of a state.

    `place` is "FAMILY TABLE CHAIN" for a rule, "FAMILY TABLE" for a set or another declaration of a table,
    and otherwise a program of adversary_programs.py, with a table or a family, or EARLIER_FLOW.
    """

    place: str
    text: str

    @property
    def table(self) -> str:
        """Return "FAMILY NAME"."""
        return " ".join(self.place.split()[:2])

    @property
    def is_rule(self) -> bool:
        """Return True for a rule of a chain."""
        return self.table in CHAINS and len(self.place.split()) > len(self.table.split())

    @property
    def program(self) -> str | None:
        """Return the program that loads the part; None: nft."""
        return None if self.table in CHAINS else self.place.split()[0]


class Draw(random.Random):
    """Random choices of one state. `declarations` and `rules` are what a drawn rule needs beside itself."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.declarations: list[Part] = []
        self.rules: list[Part] = []

    def add_set(self, table: str, text: str, kind: str = "set") -> str:
        """Add a set or map to the state; return its name."""
        name = f"{kind}{len(self.declarations)}"
        self.declarations.append(Part(table, f"{kind} {name} {{ {text}; }}"))
        return name

    def add_object(self, table: str, kind: str, text: str) -> str:
        """Add a named object to the state; return its name."""
        name = f"object{len(self.declarations)}"
        self.declarations.append(Part(table, f"{kind} {name} {{ {text}; }}"))
        return name

    def add_rule(self, table: str, chain: str, text: str) -> None:
        """Add a rule to the state, before the others of its chain."""
        self.rules.append(Part(f"{table} {chain}", text))


def is_link_layer(table: str) -> bool:
    """Return True for a table whose chains see frames, without connections."""
    return table.startswith(("netdev", "bridge"))


def has_flow(table: str, chain: str) -> bool:
    """Return True if the packets of a chain have a connection."""
    return not is_link_layer(table) and chain not in BEFORE_CONNTRACK


def draw_family(draw: Draw, table: str) -> int:
    """Return an IP family of a table."""
    return {"ip": 4, "ip6": 6}.get(table.split()[0]) or draw.choice((4, 6))


def family_word(family: int) -> str:
    """Return nft's name of a family."""
    return "ip" if family == 4 else "ip6"
