"""The kernel's WireGuard, set up by wg-quick, with rulesets/laptop-wireguard.toml."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from tests.guarded_lab import OTHER_GID, POLICY, ROOT, Guarded, guarded_lab, replaced, run_probes, watching
from tests.lab import addresses as at
from tests.lab import inbound_clients
from tests.lab.daemons import FOLDER
from tests.lab.topology import Lab
from tests.vpn_programs import INSIDE, LENGTH, WIREGUARD, addressed, of, set_wg, wait_for_echoes, wg_key

MARK, GID, TABLE = 0xCA6C, 851, 51
CONFIG = f"{FOLDER}/wg0.conf"


def _policy(lab: Lab) -> str:
    file = ROOT / "rulesets" / "laptop-wireguard.toml"
    return replaced(file, {"devices": f'["{at.WAN}"]', "lease": f'"{lab.wan_lease}"'})


@contextlib.contextmanager
def _server(made: Guarded) -> Iterator[None]:
    """Yield with a server that knows the node, and the node's configuration for wg-quick."""
    server, node = made.lab.server, made.lab.node
    server.ip("link add wg0 type wireguard")
    private = node.run(["wg", "genkey"]).stdout.strip()
    peer = node.run(["wg", "pubkey"], input=private).stdout.strip()
    server.outside(f"{FOLDER}/wg.key").write_text(server.run(["wg", "genkey"]).stdout)
    ends = f"{INSIDE[4][0]}/32,{INSIDE[6][0]}/128"
    set_wg(
        server,
        "wg0",
        "private-key",
        f"{FOLDER}/wg.key",
        "listen-port",
        str(WIREGUARD),
        "peer",
        peer,
        "allowed-ips",
        ends,
    )
    addressed(server, "wg0")
    addresses = ", ".join(f"{INSIDE[family][0]}/{LENGTH[family]}" for family in at.FAMILIES)
    node.outside(CONFIG).write_text(
        f"[Interface]\nPrivateKey = {private}\nAddress = {addresses}\nListenPort = {WIREGUARD}\n"
        f"[Peer]\nPublicKey = {wg_key(server, 'wg0')}\nAllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = {at.VPN}:{WIREGUARD}\n"
    )
    yield
    server.ip("link del wg0")


def wireguard() -> str:
    """Set the tunnel up, and count what leaves by the uplink beside it."""
    with guarded_lab(_policy, resolver=True, table=TABLE) as made, _server(made):
        lab, node = made.lab, made.lab.node
        lab.mesh_down()
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            node.sysctl(key, 0)
        node.sysctl("net.ipv4.conf.all.accept_redirects", 0)  # the kernel allows them where nothing is forwarded
        node.run(["wg-quick", "up", CONFIG], gid=GID, timeout=60)
        assert node.run(["ip", "-d", "link", "show", "wg0"]).stdout.count("wireguard"), "not the kernel's WireGuard"
        lab.wan.drain()
        wait_for_echoes(lab, 40)
        tunnel = len(of(lab.wan, WIREGUARD))
        assert tunnel, "inconclusive: no packet of the tunnel"
        with watching(lab, f"{MARK:#x}/0xffffffff") as watch:
            run = run_probes(lab, mark=MARK, gid=GID)
            for family in at.FAMILIES:
                for gid in (0, OTHER_GID):
                    answer = node.call(inbound_clients.udp, INSIDE[family][1], at.ECHO_PORT, b"inside", 8, gid=gid)
                    assert answer == b"inside", f"no answer by the tunnel, IPv{family}, group {gid}"
            counted = watch.unmarked, watch.stray
        assert run.unmarked() == [] and counted == (0, 0), f"unmarked: {run.unmarked()}, counters {counted}"
        for command in ("verify --live", "status"):
            done = made.nftpolicy(*command.split(), POLICY, check=False, timeout=60)
            assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr}"
        blocked = _without_mark(made)
        with made.off():
            control = len(run_probes(lab, mark=MARK, gid=GID).unmarked())
        assert control, "the control: no unmarked probe left without the policy"
        node.run(["wg-quick", "down", CONFIG], timeout=60)
        unmarked = sum(not sent.probe.marked for sent in run.sents)
        return (
            f"0 of {unmarked} unmarked packets left, {control} without the policy; {tunnel} packets of the tunnel; "
            f"{blocked} of WireGuard without its mark dropped; verify proved, status as expected"
        )


def _without_mark(made: Guarded) -> int:
    """Take the mark off WireGuard's packets, show that none leaves, and put it back; return how many were dropped."""
    lab, before = made.lab, sum(made.counters().values())
    peer = lab.node.run(["wg", "show", "wg0", "peers"]).stdout.strip()
    set_wg(lab.node, "wg0", "fwmark", "0")
    rule = ["rule", "add", "ipproto", "17", "sport", str(WIREGUARD), "lookup", str(TABLE), "pref", "9"]
    lab.node.run(["ip", *rule])
    lab.wan.drain()
    set_wg(lab.node, "wg0", "peer", peer, "endpoint", f"{at.SERVER[4]}:{WIREGUARD}")
    with contextlib.suppress(TimeoutError):
        lab.node.call(inbound_clients.udp, INSIDE[4][1], at.ECHO_PORT, b"unmarked", 1)
    assert of(lab.wan, WIREGUARD) == [], "WireGuard's packets left without the mark"
    dropped = made.counters()["inet/network.dropped"]
    assert sum(made.counters().values()) > before and dropped, "inconclusive: nothing was dropped"
    lab.node.run(["ip", "rule", "del", "pref", "9"])
    set_wg(lab.node, "wg0", "fwmark", f"{MARK:#x}")
    wait_for_echoes(lab, 40)
    return dropped


TESTS: Mapping[str, Callable[[], str]] = {"wireguard": wireguard}
