# SPDX-License-Identifier: BSD-2-Clause
"""The configuration of a router as it lies in a folder: read, judged as it is now, and turned into a policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import evolve, frozen

from ..compiler.compile import compile_policy
from ..model.packet import FORWARD, SOCKET, UDP, Packet, number
from ..model.walk import LEAVES, Model, Walk
from ..netstate.routing import TABLE_MAIN, IpRule, Route
from ..netstate.state import NetState
from ..openwrt.proposal import Proposal, propose
from ..openwrt.roles import Packages, Role
from ..openwrt.uci_in import Section, UciError, read
from ..policy.load import load
from ..proof.promise import claim as promised
from ..proof.prover import prove
from ..proof.surroundings import completed
from ..proof.verdict import Proof
from .verify import Asked, Judged, Progress, asked_claim

# The files of /etc/config that say something about uplinks. Only the first has to be there.
FILES = ("network", "firewall", "dhcp", "wireless", "fastd", "tunneldigger", "wgpeerselector", "gluon-wan-dnsmasq",
         "pbr", "mwan3")  # fmt: skip
_MOST = 4 << 20  # bytes of a file; a real one has a few thousand


class NoConfiguration(Exception):
    """The folder has none, or one that can't be read, or that is no UCI. The text names the file and the line."""


@frozen
class Folder:
    """What was read: the files of /etc/config, and the names of groups and routing tables beside them."""

    root: Path
    packages: Packages
    groups: dict[str, int]
    tables: dict[str, int]


@frozen
class Way:
    """A packet that leaves by an uplink now and may not. `place` is the line that its way comes from."""

    what: str
    state: NetState
    walk: Walk
    uplink: str
    place: str

    def script(self) -> str | None:
        """The packet as a script for sh that sends it in namespaces of its own; None if it can't be written."""
        from ..proof.script import script

        try:
            return script(self.state, self.walk.packet, str(self.walk.device), self.what)
        except ValueError:
            return None


@frozen
class Imported:
    """The whole: the policy and what is said of it, how it is now, and the proof of the policy."""

    folder: Path
    proposal: Proposal
    now: Judged
    ways: tuple[Way, ...]
    proof: Proof


def folder(root: Path) -> Folder:
    """What lies in `root` or `root`/etc/config.

    Raises:
        NoConfiguration: there is no file `network`, or one of the files can't be read.
    """
    if not root.is_dir():
        raise NoConfiguration(
            f"{root}: no folder; give the one that has etc/config in it, or /etc/config's copy itself"
        )
    inner = root / "etc/config"
    place = inner if inner.is_dir() else root
    found: dict[str, tuple[Section, ...]] = {}
    for name in FILES:
        data = _content(place / name)
        if data is not None:
            try:
                found[name] = read(data, name, name)
            except UciError as error:
                raise NoConfiguration(f"{place}/{error}") from None
    if "network" not in found:
        raise NoConfiguration(f"{place}/network: not there; this is the file that names a router's interfaces "
                              "(/etc/config/network, or 'uci export network')")  # fmt: skip
    etc = place.parent
    groups = {words[0]: int(words[2]) for words in _fields(etc / "group", ":")
              if len(words) > 2 and _small(words[2])}  # fmt: skip
    tables = {words[1]: int(words[0]) for words in _fields(etc / "iproute2/rt_tables", None)
              if len(words) > 1 and _small(words[0])}  # fmt: skip
    return Folder(place, found, groups, tables)


def _content(file: Path) -> bytes | None:
    try:
        if file.stat().st_size > _MOST:
            raise NoConfiguration(f"{file}: more than {_MOST >> 20} MiB, so no configuration of a router")
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NoConfiguration(f"{file}: can't be read: {error.strerror}") from None


def _fields(file: Path, separator: str | None) -> Iterator[list[str]]:
    for line in (_content(file) or b"").decode(errors="replace").splitlines():
        plain = line.partition("#")[0].strip()
        if plain:
            yield plain.split(separator)


def _small(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def imported(found: Folder, asked: Sequence[str], given: NetState, progress: Progress = lambda _: None) -> Imported:
    """The policy, and how things are now. `given` is what nft and ip printed on the router, where that is at hand.

    Raises:
        NotUsable: no policy comes of it.
    """
    proposal = propose(found.packages, asked, found.groups, found.tables)
    state = _state(proposal, given)
    wanted = [Asked(one.name, one.devices, one.mark) for one in proposal.uplinks]
    claim = asked_claim(wanted, proposal.exempt)
    progress("how it is now")
    now = Judged("the configuration as it is", state, claim, prove(state, claim, progress))
    full = completed(state, claim)[0]
    ways = tuple(_ways(proposal, full))
    policy, _ = load(proposal.text.encode(), "the policy")
    proof = prove(compile_policy(policy), promised(policy), progress)
    return Imported(found.root, proposal, now, ways, proof)


def _state(proposal: Proposal, given: NetState) -> NetState:
    """What netifd makes, but where somebody looked: there it is what was seen."""
    seen_rules = {one.family for one in given.rules}
    seen_routes = {one.family for one in given.routes}
    made = proposal.made
    return NetState(
        given.tables,
        (*(one for one in made.rules if one.family not in seen_rules), *given.rules),
        (*(one for one in made.routes if one.family not in seen_routes), *given.routes),
    )


# --- ways out ---------------------------------------------------------------------------------

_FAR = {4: number("203.0.113.9"), 6: number("2001:db8:ffff::9")}


def _ways(proposal: Proposal, state: NetState) -> Iterator[Way]:
    """Packets without the mark that leave by an uplink, one for each way that netifd's rules and routes open."""
    told: set[tuple[str, int, str]] = set()
    uplinks = {device: one for one in proposal.uplinks for device in one.devices}
    for what, scene, packet in _tries(proposal, state, uplinks):
        walk = scene.model.walk(packet)
        role = uplinks.get(walk.device or "")
        if walk.outcome != LEAVES or role is None or role.mark.worn_by(walk.mark):
            continue
        rule, route = _last(walk, IpRule), _last(walk, Route)
        key = (role.name, packet.family, f"{what}{rule.priority if isinstance(rule, IpRule) else ''}")
        if key not in told:
            told.add(key)
            yield Way(what, scene.state, walk, role.name, _place(rule, route))


@frozen
class _Scene:
    state: NetState
    model: Model


_Try = tuple[str, _Scene, Packet]


def _tries(proposal: Proposal, state: NetState, uplinks: dict[str, Role]) -> Iterator[_Try]:
    now = _Scene(state, Model(state))
    # The mesh or the tunnel is down, or not up yet: no default route but those of the uplinks.
    alone = [one for one in state.routes if one.destination != "default" or one.kind != "unicast"
             or not one.device or one.device in uplinks]  # fmt: skip
    lonely = evolve(state, routes=tuple(alone))
    later = _Scene(lonely, Model(lonely))
    own = [(one, address) for role in proposal.uplinks for one in role.interfaces for address in one.addresses]
    for family in (4, 6):
        plain = Packet(family, _FAR[family], None, UDP, 40000, 123, SOCKET, 0, 0, 0)
        yield "any program, to any address", now, plain
        for _, address in own:
            if address.version == family and not address.ip.is_link_local:
                bound = evolve(plain, source=int(address.ip))
                yield "a program that binds to the uplink's address", now, bound
                first = int(address.network.network_address)
                near = first + (10 if int(address.ip) == first + 9 else 9)
                if address.network.num_addresses > 10:
                    yield "any program, to the owner's own network", now, evolve(plain, destination=near)
        yield "any program, while no other network has a default route", later, plain
        for device in uplinks:
            yield f"a program that binds to the device {device}", now, evolve(plain, bound=device)
        for device in proposal.forwards:
            source = next((int(address.ip) + 1 for one in proposal.network.interfaces if one.device == device
                           for address in one.addresses if address.version == family), None)  # fmt: skip
            if source is not None:
                guest = evolve(plain, origin=FORWARD, iif=device, source=source)
                yield f"a host behind {device}, forwarded", now, guest


def _last(walk: Walk, kind: type) -> object:
    return next((one.thing for one in reversed(walk.decisions) if isinstance(one.thing, kind)), None)


def _place(rule: object, route: object) -> str:
    """FILE:LINE of the rule; of the route, where the rule is the kernel's own."""
    for one in (rule, route):
        origin = getattr(one, "origin", ())
        if len(origin) == 2:
            return ":".join(origin)
    return ""


def reason(way: Way) -> str:
    """The rule and the route that led it there, in words of ip(8)."""

    rule, route = _last(way.walk, IpRule), _last(way.walk, Route)
    parts = []
    if isinstance(rule, IpRule):
        parts.append(f"ip rule {rule.priority}, table {'main' if rule.table == TABLE_MAIN else rule.table}")
    if isinstance(route, Route):
        via = f" via {route.gateway}" if route.gateway else ""
        parts.append(f"route {route.destination}{via} dev {route.device}")
    return ", ".join(parts) or "no route is asked"
