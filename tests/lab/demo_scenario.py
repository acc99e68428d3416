"""The main job from beginning to end, as the demo shows it and a test repeats it."""

import sys
import time
from collections.abc import Callable, Iterator

from . import addresses as at
from . import leak_probes
from .demo_verdict import (
    GUARDED,
    NO_MESH,
    NO_WAN,
    OPEN,
    OTHERS,
    SERVICE,
    Asked,
    Report,
    State,
    described,
    reason,
)
from .netns import wait_until
from .topology import Lab

GROUP, OTHER = 800, 65534  # the group of rulesets/gluon-fastd.toml, and another user
_LEASE = "/run/nftpolicy/wan.dns"  # where that policy looks for the uplink's servers
_POLICY = "/run/policy.toml"
_COMMAND = [sys.executable, "-m", "nftpolicy"]
_SERVERS = ("127.0.0.1", "::1", at.GATEWAY[4], at.GATEWAY[6])

Progress = Callable[[str], None]


def tell(policy: str, progress: Progress, rounds: int = 5) -> Report:
    """Run all steps with the text of a policy; `progress` is called with the title of each step.

    `rounds` is the number of times that the probes are sent under the policy. Raises errors of Lab and the commands.
    """
    report, start = Report(), time.monotonic()
    progress("without a policy: everything that can leave by the WAN")
    with Lab(wan="main") as lab:
        report.states.append(_probe(lab, OPEN, 1))
    with Lab() as lab:
        lab.node.outside(_POLICY).write_text(policy.replace(_LEASE, lab.wan_lease))
        for title, step in _STEPS:
            progress(title)
            step(lab, report, rounds)
    report.seconds = round(time.monotonic() - start, 1)
    return report


def _apply(lab: Lab, report: Report, _: int) -> None:
    lab.node.run([*_COMMAND, "apply", _POLICY])
    again = lab.node.run([*_COMMAND, "apply", _POLICY]).stdout
    report.facts["the second apply of the same policy changes nothing"] = "nothing to change" in again
    lab.daemon([*_COMMAND, "resolver", _POLICY])
    wait_until(lambda: _ask(lab, SERVICE, "127.0.0.1", False) == "wan", 10, "the WAN resolver")


def _vpn(lab: Lab, report: Report, _: int) -> None:
    """Let fastd find its server by name through the WAN resolver, and connect."""
    lab.start_fastd_client(GROUP, remote=at.VPN)
    peers = lab.wait_for_fastd()
    source = lab.wan_address(4), lab.wan_address(6)
    by_wan = all(any(str(one) in peer["address"] for one in source) for peer in peers.values())
    report.facts[f"fastd found {at.VPN} by the WAN's DNS and is connected through the WAN"] = bool(peers) and by_wan


def _guarded(lab: Lab, report: Report, rounds: int) -> None:
    report.states.append(_probe(lab, GUARDED, rounds))
    report.names += _names(lab, GUARDED, _SERVERS)
    answer = _ask(lab, OTHERS, "127.0.0.1", False, 54)
    report.facts["a process of another group gets no answer from the WAN resolver"] = answer == "none"


def _answers(lab: Lab, report: Report, _: int) -> None:
    lab.wan.drain()
    ping = lab.neighbour.run(["busybox", "ping", "-c", "1", "-W", "2", str(lab.wan_address(4))], check=False)
    report.facts["a ping from the home LAN is answered through the WAN"] = ping.returncode == 0
    closed = lab.neighbour.run(["busybox", "nc", "-w", "2", str(lab.wan_address(4)), "9"], check=False)
    report.facts["a closed TCP port refuses at once"] = "refused" in closed.stderr
    strange = [frame for frame in lab.wan.frames() if reason(frame, []) is None]
    report.facts["nothing else leaves with those answers"] = not strange


def _no_wan(lab: Lab, report: Report, _: int) -> None:
    lab.wan_down()
    report.states.append(_probe(lab, NO_WAN, 1))
    report.names += _names(lab, NO_WAN, _SERVERS[:1])
    lab.wan_up()


def _no_mesh(lab: Lab, report: Report, _: int) -> None:
    wait_until(lambda: _ask(lab, SERVICE, "127.0.0.1", False) == "wan", 10, "the WAN resolver after the cut")
    lab.mesh_down()
    report.states.append(_probe(lab, NO_MESH, 1))
    report.names += _names(lab, NO_MESH, _SERVERS[:1])
    report.facts["fastd is still connected after both cuts"] = bool(lab.server_fastd_peers())


_STEPS: tuple[tuple[str, Callable[[Lab, Report, int], None]], ...] = (
    ("the policy is applied, the WAN resolver starts", _apply),
    ("fastd looks for its server by name and connects", _vpn),
    ("the same probes again, and who answers names", _guarded),
    ("the home LAN pings, and knocks at a closed port", _answers),
    ("the WAN is cut", _no_wan),
    ("the WAN is back, the mesh is cut", _no_mesh),
)


def _probe(lab: Lab, name: str, rounds: int) -> State:
    lab.wan.drain()
    lab.mesh_sniffer.drain()
    sent = [one for _ in range(rounds) for one in leak_probes.send_all(lab, gid=GROUP)]
    sent = [one for one in sent if not one.unsupported]
    # Marked ones are waited for; the rest has had as long.
    marked = [one for one in sent if one.probe.marked]
    leak_probes.sightings(lab.wan, marked, 0.5)
    on_wan = leak_probes.sightings(lab.wan, sent, 0.2)
    in_mesh = leak_probes.sightings(lab.mesh_sniffer, marked, 0.2)
    state = State(name, len(sent), len({one.probe.kind for one in sent}))
    state.unmarked_on_wan = sum(not one.probe.marked for one in on_wan)
    state.marked_on_wan = sum(one.probe.marked for one in on_wan)
    state.marked_in_mesh = len(in_mesh)
    if name != OPEN:
        state.unexplained = [described(frame) for frame in lab.wan.frames() if reason(frame, marked) is None]
    return state


def _names(lab: Lab, state: str, servers: tuple[str, ...]) -> Iterator[Asked]:
    for who in (SERVICE, OTHERS):
        given = [_ask(lab, who, server, tcp) for server in servers for tcp in (False, True)]
        yield Asked(state, who, len(given), given.count("wan"), given.count("mesh"), given.count("none"))


def _ask(lab: Lab, who: str, server: str, tcp: bool, port: int = 53) -> str:
    """Return the resolver whose answer a query for the same name gets: "wan", "mesh" or "none"."""
    gid = GROUP if who == SERVICE else OTHER
    answer = lab.resolve(at.WHO, 4, server, tcp=tcp, gid=gid, uid=OTHER, port=port, seconds=0.7)
    return {at.WHO_AT_HOME[4]: "wan", at.WHO_IN_MESH[4]: "mesh"}.get(answer[0] if answer else "", "none")
