"""Observations of the demo, and those that violate the policy."""

from dataclasses import asdict, dataclass, field
from typing import Any

from . import addresses as at
from .frames import Frame, classify
from .leak_probes import Sent


def described(frame: Frame) -> str:
    """Return a frame on one short line."""
    ends = f"{frame.saddr} > {frame.daddr}" if frame.saddr else f"ethertype {frame.ethertype:#06x}"
    ports = f" ports {frame.sport} > {frame.dport}" if frame.sport is not None else ""
    return f"{classify(frame)} {ends} protocol {frame.l4proto}{ports}, {frame.length} bytes"


EXEMPT = frozenset({"arp", "dhcpv4", "dhcpv6", "ndp", "mld", "igmp"})
_DNS = 53


def reason(frame: Frame, marked: list[Sent]) -> str | None:
    """Return the reason why a frame may leave by the WAN, in a word; None if nothing allows it.

    The wire does not show marks. So every frame must be one of a marked probe, of a known marked
    flow, an exemption or an answer.
    """
    word = classify(frame)
    if word in EXEMPT:
        return "exempt"
    if any(sent.matches(frame) for sent in marked):
        return "marked probe"
    if word == "udp" and frame.dport == at.FASTD_PORT:
        return "vpn"
    if word in ("udp", "tcp") and frame.dport == _DNS and frame.daddr in at.HOME.values():
        return "resolver"
    if frame.daddr in at.NEIGHBOUR.values() and word in ("echo-reply", "tcp"):
        return "answer"
    return None


@dataclass
class State:
    """State of the node, and the frames that left it while the probes were sent."""

    name: str
    probes: int = 0
    kinds: int = 0
    unmarked_on_wan: int = 0
    marked_on_wan: int = 0
    marked_in_mesh: int = 0
    unexplained: list[str] = field(default_factory=list)


@dataclass
class Asked:
    """Queries for a name in one state by one user (`who`), and the origins of the answers."""

    state: str
    who: str
    questions: int
    by_wan: int = 0
    by_mesh: int = 0
    unanswered: int = 0


@dataclass
class Report:
    """Observations of the demo. `facts` are single statements that must be true."""

    states: list[State] = field(default_factory=list)
    names: list[Asked] = field(default_factory=list)
    facts: dict[str, bool] = field(default_factory=dict)
    seconds: float = 0.0

    def faults(self) -> list[str]:
        """Return violations of the policy, and missing controls; empty if the policy held."""
        found = [f"not so: {fact}" for fact, true in self.facts.items() if not true]
        for state in self.states:
            found += _state_faults(state)
        for asked in self.names:
            found += _name_faults(asked)
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the report for `--json`."""
        return {**asdict(self), "held": not self.faults(), "faults": self.faults()}


OPEN, GUARDED, NO_WAN, NO_MESH = "no policy", "guarded", "WAN cut", "mesh cut"
SERVICE, OTHERS = "the VPN's group", "everybody else"


def _state_faults(state: State) -> list[str]:
    if state.name == OPEN:  # the positive control: the same probes are seen without a guard
        enough = state.unmarked_on_wan * 2 > state.probes - state.marked_on_wan
        return (
            [] if enough else [f"inconclusive: only {state.unmarked_on_wan} unmarked probes were seen without a policy"]
        )
    found = [f"{state.name}: {state.unmarked_on_wan} unmarked probes left by the WAN"] if state.unmarked_on_wan else []
    if state.marked_in_mesh:
        found.append(f"{state.name}: {state.marked_in_mesh} marked probes were in the mesh")
    found += [f"{state.name}: nothing allows this frame on the WAN: {frame}" for frame in state.unexplained[:3]]
    if state.name != NO_WAN and not state.marked_on_wan:
        found.append(f"inconclusive: {state.name}: no marked probe left by the WAN")
    return found


def _name_faults(asked: Asked) -> list[str]:
    wrong = asked.by_mesh if asked.who == SERVICE else asked.by_wan
    right = asked.by_wan if asked.who == SERVICE else asked.by_mesh
    cut = (asked.state, asked.who) in ((NO_WAN, SERVICE), (NO_MESH, OTHERS))
    where = f"{asked.state}: {asked.who}"
    if wrong:
        return [f"{where}: {wrong} of {asked.questions} names were answered by the wrong resolver"]
    if not cut and right != asked.questions:
        return [f"{where}: only {right} of {asked.questions} names were answered"]
    return [f"{where}: names were answered, though the way is cut"] if cut and right else []
