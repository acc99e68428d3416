"""Tunnels that only a stock kernel has: IPsec and L2TP over IP, with a policy that names their other ends.

node: br-wan, xfrm and l2tpeth devices on it ---------- far0 :far, which only listens
"""

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from tests.guarded_lab import Guarded
from tests.lab import addresses as at
from tests.lab.daemons import FOLDER
from tests.lab.frames import Frame
from tests.lab.limits import brief
from tests.lab.netns import Namespace, veth
from tests.lab.sniffer import Sniffer

from .uplink_kinds import MARK, NODE, Link, verdict

PEER = {4: "198.51.100.9", 6: "2001:db8:9::9"}
OTHER = {4: "198.51.100.10", 6: "2001:db8:9::10"}  # ends that the policy does not name
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
STRANGER, L2TP = 4711, 115
_NAT_PORT = 4500  # of ESP in UDP
_TRANSPORT_PORT = 99  # whose packets IPsec transforms in transport mode
_NETWORK = {4: "10.{}.0.{}", 6: "fd00:{}::{}"}  # in a tunnel
_KEYS = f"enc cbc(aes) 0x{'5a' * 16} auth hmac(sha256) 0x{'a5' * 32}"
POLICY = f"""
name = "kernel-tunnels"
inside = ["ipsec*", "lt*"]

[uplink.wan]
devices = ["{at.WAN}"]
mark = "{MARK:#x}/0xff"
table = 51
exempt = ["arp", "ndp", "mld", "igmp"]
gateways = ["{at.HOME[4]}", "{at.HOME[6]}"]

[service.tunnels]
uplink = "wan"
kernel = true
ports = ["PROTOCOL"]
to = ["{PEER[4]}", "{PEER[6]}"]
"""


def association(node: Namespace, family: int, number: int, to: str, more: str = "", if_id: bool = True) -> None:
    """Add the security association and the policy of tunnel `number`; `if_id`: for its xfrm device alone."""
    any_address = "0.0.0.0/0" if family == 4 else "::/0"
    target = any_address if if_id else f"{_NETWORK[family].format(number, 0)}/{24 if family == 4 else 64}"
    chosen, ends = (f"if_id {number}" if if_id else ""), f"src {NODE[family]} dst {to}"
    tail = f"reqid {number} mode {'transport' if 'transport' in more else 'tunnel'}"
    state = f"xfrm state add {ends} proto esp spi {0x100 + number:#x} {tail} {chosen} {more.replace('transport', '')}"
    node.run(["ip", *state.split(), *_crypto()])
    selector = (
        f"dst {to} proto 17 dport {_TRANSPORT_PORT}" if "transport" in more else f"src {any_address} dst {target}"
    )
    words = f"xfrm policy add {selector} dir out {chosen} tmpl {ends} proto esp {tail}"
    node.run(["ip", *words.split()])


def _crypto() -> list[str]:
    return _KEYS.split()


def xfrm_device(node: Namespace, family: int, number: int) -> None:
    """Add a device whose packets tunnel `number` carries, with an address and a neighbourless route."""
    node.ip(f"link add ipsec{number} type xfrm if_id {number}", f"link set ipsec{number} up")
    nodad = " nodad" if family == 6 else ""
    node.ip(f"addr add {_NETWORK[family].format(number, 2)}/{24 if family == 4 else 64} dev ipsec{number}{nodad}")


def session(node: Namespace, family: int, number: int, to: str) -> None:
    """Add an L2TPv3 tunnel over IP, and an Ethernet session in it."""
    node.ip(
        f"l2tp add tunnel tunnel_id {number} peer_tunnel_id {number} encap ip local {NODE[family]} remote {to}",
        f"l2tp add session name lt{number} tunnel_id {number} session_id {number} peer_session_id {0x10000 * number}",
        f"link set lt{number} up",
        f"addr add 10.{number}.0.2/24 dev lt{number}",
        f"neigh add 10.{number}.0.1 lladdr {at.HOME_MAC} dev lt{number}",
    )


def send(family: int, to: str, word: str, protocol: int = 0, port: int = 9, device: str = "") -> None:
    """Send one UDP packet, or one of another protocol by a datagram socket. Runs inside a namespace."""
    with socket.socket(FAMILIES[family], socket.SOCK_DGRAM, protocol) as sender, contextlib.suppress(OSError):
        if device:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        sender.sendto(word.encode(), (to, 0 if protocol else port))


@contextlib.contextmanager
def linked() -> Iterator[tuple[Link, Sniffer]]:
    """Yield the node with addresses and default routes by the uplink, and the sniffer at its far end."""
    with Namespace("node") as node, Namespace("far") as far:
        node.outside(FOLDER).mkdir(exist_ok=True)
        veth(node, at.WAN, far, "far0")
        for family in at.FAMILIES:
            nodad = " nodad" if family == 6 else ""
            node.ip(f"addr add {NODE[family]}/{24 if family == 4 else 64} dev {at.WAN}{nodad}")
            node.ip(f"-{family} route replace default via {at.HOME[family]} dev {at.WAN} onlink")
            node.ip(f"neigh replace {at.HOME[family]} lladdr {at.HOME_MAC} dev {at.WAN}")
        with Sniffer(far, "far0") as sniffer:
            yield Link(node), sniffer


def left(
    node: Namespace, sniffer: Sniffer, senders: Mapping[str, tuple[Any, ...]], found: Callable[[Frame], str | None]
) -> set[str]:
    """Send a packet of each kind as another user, and return the names of those that left."""
    sniffer.drain()
    for name, arguments in senders.items():
        node.call(send, *arguments[:2], f"<{name}>", *arguments[2:], uid=STRANGER, gid=STRANGER)
    time.sleep(brief(0.5))
    frames = sniffer.frames()
    clear = {name for name in senders for frame in frames if f"<{name}>".encode() in frame.payload}
    return clear | {name for frame in frames if (name := found(frame)) is not None}


# By the number of a tunnel; its SPI is 0x100 above.
_GOOD = {4: "esp4", 6: "esp6", 14: "policy4", 16: "policy6"}
_BAD = {24: "other4", 26: "other6", 34: "transport4", 44: "in-udp4"}


def _esp(frame: Frame) -> str | None:
    if frame.l4proto != socket.IPPROTO_ESP and frame.sport != _NAT_PORT:
        return None
    return {**_GOOD, **_BAD}.get(struct.unpack_from("!I", frame.payload)[0] - 0x100)


def ipsec() -> str:
    """IPsec by xfrm devices and by policies, in both families; what is in clear, and other ends, do not leave."""
    with linked() as (link, sniffer):
        node = link.node
        senders: dict[str, tuple[Any, ...]] = {}
        for number, name in {**_GOOD, **_BAD}.items():
            family = int(name[-1])
            end = OTHER[family] if name.startswith("other") else PEER[family]
            more = {"transport4": "transport", "in-udp4": f"encap espinudp {_NAT_PORT} {_NAT_PORT} 0.0.0.0"}.get(
                name, ""
            )
            by_device = not name.startswith(("policy", "transport"))
            association(node, family, number, end, more, by_device)
            if by_device:
                xfrm_device(node, family, number)
            inner = (family, _NETWORK[family].format(number, 1))
            senders[name] = (family, end, 0, _TRANSPORT_PORT) if more == "transport" else inner
        for family in at.FAMILIES:
            senders[f"clear{family}"] = (family, _NETWORK[family].format(99, 1), 0, 9, at.WAN)
            senders[f"to-peer{family}"] = (family, PEER[family])
            senders[f"bound{family}"] = (family, PEER[family], 0, 9, at.WAN)
        return _result(link, sniffer, senders, _esp, set(_GOOD.values()), "esp", "ipsec4")


def _l2tp(frame: Frame) -> str | None:
    names = {0x10000 * number: name for number, name in {4: "l2tp4", 6: "l2tp6", 24: "other4", 26: "other6"}.items()}
    return names.get(struct.unpack_from("!I", frame.payload)[0]) if frame.l4proto == L2TP else None


def l2tp_ip() -> str:
    """L2TP over IP in both families; sockets of processes (session ID 0) and other ends do not leave."""
    with linked() as (link, sniffer):
        senders: dict[str, tuple[Any, ...]] = {}
        for family, other in ((4, False), (6, False), (4, True), (6, True)):
            number = family + 20 * other
            session(link.node, family, number, (OTHER if other else PEER)[family])
            senders[f"{'other' if other else 'l2tp'}{family}"] = (4, f"10.{number}.0.1")
        for family in at.FAMILIES:
            senders[f"process{family}"] = (family, PEER[family], L2TP)
            senders[f"to-peer{family}"] = (family, PEER[family])
            senders[f"bound{family}"] = (family, PEER[family], 0, 9, at.WAN)
        return _result(link, sniffer, senders, _l2tp, {"l2tp4", "l2tp6"}, "l2tp", "lt4")


def _result(
    link: Link,
    sniffer: Sniffer,
    senders: Mapping[str, tuple[Any, ...]],
    found: Callable[[Frame], str | None],
    good: set[str],
    protocol: str,
    inside: str,
) -> str:
    """Return the counts: first without a policy, the control, then with it, and the verdict of the live proof."""
    lab: Any = link
    before = left(link.node, sniffer, senders, found)
    assert before == set(senders), f"inconclusive: without a policy these did not leave: {set(senders) - before}"
    for family in at.FAMILIES:  # as a route inside has
        link.node.ip(f"-{family} route add default dev {inside} metric 1")
    made = Guarded(lab, POLICY.replace("PROTOCOL", protocol))
    made.apply()
    after = left(link.node, sniffer, senders, found)
    bad = len(senders) - len(good)
    assert after <= good, f"{', '.join(sorted(after - good))} left"
    assert after == good, f"{', '.join(sorted(good - after))} did not leave"
    return f"0 of {bad} other packets left, {len(after)} of {len(good)} of the tunnels; without a policy {bad} others; {verdict(made)}"


TESTS: Mapping[str, Callable[[], str]] = {"ipsec": partial(ipsec), "l2tp-ip": partial(l2tp_ip)}
