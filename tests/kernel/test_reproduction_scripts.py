"""Reproduction scripts, run by sh in a temporary namespace, as a reader would run them."""

import contextlib
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.model.packet import FORWARD, FRAME, ICMP, ICMPV6, IGMP, KERNEL, TCP, UDP, CtInfo, Packet, parse_address
from nftpolicy.model.trace import Model
from nftpolicy.netstate import nft
from nftpolicy.netstate.nft import Chain, Ct, Hook, Match, Meta, Payload, Rule, Table
from nftpolicy.netstate.routing import IpRule, Route, Sysctl
from nftpolicy.netstate.state import Device, NetState
from nftpolicy.proof.reproduce.script import (
    EXIT_INCONCLUSIVE,
    EXIT_LEFT,
    EXIT_NOT_LEFT,
    reproduction_script,
)
from tests import busybox, leaking_states
from tests.lab.limits import brief, limit
from tests.lab.netns import Namespace, wait_until

WAN = "wan0"
ADDRESS = {4: "192.0.2.2", 6: "2001:db8:1::2"}
FOREIGN = {4: "203.0.113.99", 6: "2001:db8:99::9"}
FAR = {4: "198.51.100.9", 6: "2001:db8:f::9"}
LEAKS = [(known, leak) for known in leaking_states.all_known() for leak in known.leaks]
NAMES = [f"{known.name}-{number}" for known in leaking_states.all_known() for number in range(len(known.leaks))]
SHELLS = {"sh": ["sh"], "bash --posix": ["bash", "--posix"], "busybox sh": [str(busybox.path()), "sh"]}
POSTROUTING = Hook("filter", "postrouting", 10000)
SLOW = 3  # seconds that no script may take


@pytest.fixture
def space():
    with Namespace("script") as made:
        yield made


def run(space, text):
    """Return exit status and output of the script; it must leave nothing behind."""
    start = time.monotonic()
    done = space.run(["sh", "-s"], input=text, check=False)
    assert time.monotonic() - start < brief(SLOW)
    assert not left_over(space), "a namespace stays behind"
    return done.returncode, done.stdout, done.stderr


def left_over(space):
    folder = space.outside("/run/netns")
    return sorted(one.name for one in folder.iterdir()) if folder.exists() else []


def reproduced(space, state, packet, device=WAN, title="a test"):
    """Return the exit status of the script, which must print no errors and no cautions."""
    status, out, err = run(space, reproduction_script(state, packet, device, title))
    assert (err, "caution" in out) == ("", False), out
    return status


def dropping(device, hook="postrouting"):
    """Return a table that drops all packets at a device."""
    if hook == "egress":
        chain = Chain("stop", (Rule((nft.DROP,)),), Hook("filter", "egress", 0, device=device))
        return Table("netdev", "stop", (chain,))
    rule = Rule((Match(Meta("oifname"), device), nft.DROP))
    return Table("inet", "stop", (Chain("stop", (rule,), POSTROUTING),))


def router(family, *tables):
    """Return the state of a machine with a WAN and an inside network, for a test to extend."""
    inside = ("192.168.1.1", "192.168.1.0/24") if family == 4 else ("fd00:db8::1", "fd00:db8::/64")
    gateway = "192.0.2.1" if family == 4 else "2001:db8:1::1"
    network = "192.0.2.0/24" if family == 4 else "2001:db8:1::/64"
    routes = (
        *leaking_states.loopback(family),
        *leaking_states.device(family, WAN, ADDRESS[family], network),
        *leaking_states.device(family, "lan0", *inside),
        leaking_states.default(family, WAN, gateway),
    )
    return NetState(tables, leaking_states.standard_rules(family), routes)


def only(*matches, device=WAN, hook=None):
    """Return a table that passes matching packets only."""
    hook = hook or POSTROUTING
    rules = (Rule((*matches, nft.ACCEPT)), Rule((Match(Meta("oifname"), device), nft.DROP)))
    return Table("netdev" if hook.device else "inet", "only", (Chain("only", rules, hook),))


def agreed(space, state, packet, device=WAN):
    """Return the exit status of the script, if the model agrees."""
    walk = Model(state).trace(packet)
    leaves = walk.outcome == "leaves" and walk.device == device
    status = reproduced(space, state, packet, device)
    assert status == (EXIT_LEFT if leaves else EXIT_NOT_LEFT), walk
    return status


@pytest.mark.parametrize(("known", "leak"), LEAKS, ids=NAMES)
def test_script_of_known_leak_shows_leak(space, known, leak):
    assert agreed(space, known.state, leak.packet, leak.device) == EXIT_LEFT


@pytest.mark.parametrize(("known", "leak"), LEAKS, ids=NAMES)
def test_script_of_dropped_leak_shows_no_leak(space, known, leak):
    state = evolve(known.state, tables=(*known.state.tables, dropping(leak.device)))
    assert agreed(space, state, leak.packet, leak.device) == EXIT_NOT_LEFT


def packets(family):
    """Return one packet of each kind."""
    to, icmp = parse_address(FAR[family]), "icmp" if family == 4 else "icmpv6"
    echo, reply, unreachable = (8, 0, 3) if family == 4 else (128, 129, 1)
    protocol = ICMP if family == 4 else ICMPV6
    own, inside = parse_address(ADDRESS[family]), parse_address("192.168.1.7" if family == 4 else "fd00:db8::7")
    return {
        "udp": Packet(family, to),
        "tcp": Packet(family, to, protocol=TCP, dport=443),
        "tcp-rst": Packet(family, to, protocol=TCP, fields={("tcp", "flags"): 4}, flow=CtInfo("invalid")),
        "udp-port-0": Packet(family, to, dport=0),
        "echo": Packet(family, to, protocol=protocol),
        "icmp-other": Packet(family, to, protocol=protocol, fields={(icmp, "type"): echo, (icmp, "code"): 3}),
        "gre": Packet(family, to, protocol=47, uid=1000),
        "raw-ip": Packet(family, to, protocol=255),
        "protocol-0": Packet(family, to, own, protocol=0),
        "foreign-source": Packet(family, to, parse_address(FOREIGN[family]), protocol=47),
        "bound": Packet(family, to, bound=WAN),
        "forward": Packet(family, to, inside, origin=FORWARD, iif="lan0"),
        "forward-tcp": Packet(family, to, inside, origin=FORWARD, iif="lan0", protocol=TCP),
        "echo-reply": Packet(family, to, own, origin=KERNEL, protocol=protocol, fields={(icmp, "type"): reply}),
        "unreachable": Packet(family, to, own, origin=KERNEL, protocol=protocol, fields={(icmp, "type"): unreachable}),
        "reset": Packet(family, to, own, origin=KERNEL, protocol=TCP, sport=22),
        "frame": Packet(family, to, own, origin=FRAME, bound=WAN),
        "frame-tcp": Packet(family, to, own, origin=FRAME, bound=WAN, protocol=TCP),
        "arp": Packet(
            4, parse_address("192.0.2.1"), parse_address("192.0.2.2"), origin=FRAME, bound=WAN, ethertype=0x0806
        ),
        "other-frame": Packet(family, to, origin=FRAME, bound=WAN, ethertype=0x88B5),
    }


KINDS = [(family, kind) for family in (4, 6) for kind in packets(4)]


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_script_sends_every_packet_kind(space, egress, family, kind):
    packet = packets(family)[kind]
    state = router(packet.family)
    assert agreed(space, state, packet) == EXIT_LEFT
    hook = "egress" if packet.origin == FRAME else "postrouting"
    assert agreed(space, evolve(state, tables=(dropping(WAN, hook),)), packet) == EXIT_NOT_LEFT


@pytest.mark.parametrize("family", [4, 6])
def test_script_packet_has_requested_fields(space, family):
    name, ttl = ("ip", "ttl") if family == 4 else ("ip6", "hoplimit")
    packet = Packet(
        family,
        parse_address(FAR[family]),
        sport=1234,
        dport=53,
        mark=0x50,
        uid=1000,
        gid=2000,
        fields={(name, ttl): 9, (name, "dscp"): 10},
    )
    matches = [
        Match(Meta("skuid"), 1000),
        Match(Meta("skgid"), 2000),
        Match(Meta("mark"), 0x50),
        Match(Payload(name, "saddr"), ADDRESS[family]),
        Match(Payload(name, "daddr"), FAR[family]),
        Match(Payload("udp", "sport"), 1234),
        Match(Payload("udp", "dport"), 53),
        Match(Payload(name, ttl), 9),
        Match(Payload(name, "dscp"), 10),
    ]
    assert reproduced(space, router(family, only(*matches)), packet) == EXIT_LEFT
    changes = {"sport": 1235, "dport": 54, "mark": 0x51, "uid": 1001, "gid": 2001, "fields": {}}
    for key, value in changes.items():
        other = evolve(packet, **{key: value})
        assert reproduced(space, router(family, only(*matches)), other) == EXIT_NOT_LEFT, key


@pytest.mark.parametrize("protocol", [UDP, TCP])
@pytest.mark.parametrize("family", [4, 6])
def test_script_transparent_socket_uses_foreign_source(space, family, protocol):
    packet = Packet(family, parse_address(FAR[family]), parse_address(FOREIGN[family]), protocol=protocol)
    status, out, _ = run(space, reproduction_script(router(family), packet, WAN, "a test"))
    assert (status, FOREIGN[family] in out) == (EXIT_LEFT, True)


def test_script_frame_has_mark_and_ethertype(space, egress):
    packet = packets(6)["frame"]
    matches = Match(Meta("mark"), 7), Match(Meta("protocol"), "ip6"), Match(Payload("udp", "dport"), packet.dport)
    guard = only(*matches, hook=Hook("filter", "egress", 0, device=WAN))
    assert reproduced(space, router(6, guard), evolve(packet, mark=7)) == EXIT_LEFT
    assert reproduced(space, router(6, guard), packet) == EXIT_NOT_LEFT
    assert reproduced(space, router(6, guard), evolve(packet, mark=7, dport=10)) == EXIT_NOT_LEFT


def test_script_ignores_packet_at_other_device(space):
    state, packet = router(4), Packet(4, parse_address("192.168.1.7"))
    assert reproduced(space, state, packet, "lan0") == EXIT_LEFT
    assert reproduced(space, state, packet, WAN) == EXIT_NOT_LEFT


def test_script_replaces_ip_rules_of_kernel(space):
    state, packet = router(4), Packet(4, parse_address(FAR[4]))
    assert reproduced(space, evolve(state, rules=state.rules[:1]), packet) == EXIT_NOT_LEFT
    assert reproduced(space, evolve(state, rules=()), packet) == EXIT_LEFT  # nothing is known of them


def test_script_sets_sysctls(space):
    packet = packets(4)["forward"]
    state = evolve(router(4), sysctls=(Sysctl("net/ipv4/conf/lan0/forwarding", "0"),))
    assert reproduced(space, state, packet) == EXIT_NOT_LEFT


@pytest.mark.parametrize(
    "packet",
    [
        Packet(4, parse_address("224.0.0.22"), origin=KERNEL, protocol=IGMP),
        Packet(4, parse_address(FAR[4]), parse_address("192.168.1.7"), origin=FORWARD),
    ],
    ids=["report", "from-nowhere"],
)
def test_script_of_unproducible_packet_is_inconclusive(space, packet):
    status, out, _ = run(space, reproduction_script(router(4), packet, WAN, "a test"))
    assert status == EXIT_INCONCLUSIVE
    assert "no script can produce this packet" in out


def test_script_with_broken_watcher_is_inconclusive(space):
    text = reproduction_script(router(4, dropping(WAN)), Packet(4, parse_address(FAR[4])), WAN, "a test")
    broken = text.replace("enter(THERE)", "enter(HERE)")
    assert broken != text
    status, out, err = run(space, broken)
    assert (status, out) == (EXIT_INCONCLUSIVE, "inconclusive\n")
    assert "the watcher does not see" in err


@pytest.mark.parametrize(("old", "new"), [("table inet", "table nowhere"), ("route append default", "route append x")])
def test_script_of_unloadable_state_is_inconclusive(space, old, new):
    text = reproduction_script(router(4, dropping(WAN)), Packet(4, parse_address(FAR[4])), WAN, "a test")
    status, out, err = run(space, text.replace(old, new))
    assert (status, out) == (EXIT_INCONCLUSIVE, "inconclusive\n")
    assert err


def test_script_names_table_with_unknown_rule(space):
    strange = Table("inet", "strange", (Chain("c", (Rule((nft.UnknownStatement('{"mystery":1}'),)),)),))
    status, out, _ = run(
        space, reproduction_script(router(4, strange), Packet(4, parse_address(FAR[4])), WAN, "a test")
    )
    assert status == EXIT_INCONCLUSIVE
    assert "the packet left by wan0" in out
    assert "caution: table inet strange, chain c, is here without a rule" in out


@pytest.mark.parametrize("name", SHELLS)
def test_script_runs_in_every_shell(space, name):
    shell = SHELLS[name]
    if not shutil.which(shell[0]):
        pytest.skip(f"this machine lacks {busybox.missing() if 'busybox' in name else shell[0]}")
    text = reproduction_script(router(4), Packet(4, parse_address(FAR[4])), WAN, "a test")
    stopped = reproduction_script(router(4, dropping(WAN)), Packet(4, parse_address(FAR[4])), WAN, "a test")
    for script, status in ((text, EXIT_LEFT), (stopped, EXIT_NOT_LEFT)):
        assert "private sh -s" in script
        script = script.replace("private sh -s", f"private {' '.join(shell)} -s")
        assert space.run([*shell, "-s"], input=script, check=False).returncode == status


def test_script_of_large_state_ends_in_time(space):
    prefixes = [f"2001:db8:{index:x}::/48" for index in range(5000)]
    routes = tuple(Route(6, 300, prefix, device=WAN, metric=1024) for prefix in prefixes)
    members = nft.Set("members", ("ipv6_addr",), frozenset(prefix.replace("/48", "1") for prefix in prefixes))
    chain = Chain("c", (Rule((Match(Payload("ip6", "daddr"), nft.SetRef("members")), nft.DROP)),), POSTROUTING)
    state = router(6, Table("inet", "large", (chain,), (members,)))
    state = evolve(state, routes=(*state.routes, *routes), rules=(*state.rules, IpRule(6, 100, table=300)))
    assert reproduced(space, state, Packet(6, parse_address("2001:db8:7::2"))) == EXIT_LEFT
    assert reproduced(space, state, Packet(6, parse_address("2001:db8:7::1"))) == EXIT_NOT_LEFT


def test_script_quotes_title_and_refuses_device_name(space):
    title = "a title\nexit 0\n$(exit 0) `exit 0` 'END"
    state = router(4, dropping(WAN))
    assert reproduced(space, state, Packet(4, parse_address(FAR[4])), title=title) == EXIT_NOT_LEFT
    for device in ("wan0; exit 0", "$(exit)", "a b", "wan0\nexit"):
        with pytest.raises(ValueError, match="is not a valid device name"):
            reproduction_script(state, Packet(4, parse_address(FAR[4]), bound=device), WAN, "a test")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_script_interrupted_leaves_no_namespace(space, number):
    text = reproduction_script(router(4), Packet(4, parse_address(FAR[4])), WAN, "a test").replace(
        "status=0", "sleep 1 & wait"
    )
    process = space.popen(["sh", "-c", text])
    mounts = Path(f"/proc/{process.pid}/mountinfo")
    wait_until(lambda: mounts.read_text().count(" nsfs ") >= 2, 5, "the namespaces of the script")
    namespace = Path(f"/proc/{process.pid}/ns/mnt")
    with namespace.open("rb"):  # the kernel gives the number of a namespace that nothing holds to the next one
        own = namespace.readlink()
        assert not left_over(space), "the names are of the script alone"
        process.send_signal(number)
        try:
            assert process.wait(limit(5)) == (EXIT_INCONCLUSIVE if number == signal.SIGTERM else -number)
        except subprocess.TimeoutExpired:
            pytest.fail("the script does not end")
        wait_until(lambda: own not in mount_namespaces(), 5, "the end of the last process that holds the namespaces")
    assert not left_over(space)


def mount_namespaces():
    """Return the mount namespaces of all processes."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/mnt"):
        with contextlib.suppress(OSError):
            found.add(link.readlink())
    return found


def test_script_leaves_existing_namespace(space):
    space.run(["ip", "netns", "add", "here"])
    text = reproduction_script(router(4), Packet(4, parse_address(FAR[4])), WAN, "a test")
    assert space.run(["sh", "-s"], input=text, check=False).returncode == EXIT_LEFT
    assert left_over(space) == ["here"]


def test_script_without_right_to_mount_is_inconclusive(space):
    text = reproduction_script(router(4), Packet(4, parse_address(FAR[4])), WAN, "a test")
    assert space.run(["sh", "-s"], input=text, check=False, uid=65534).returncode == EXIT_INCONCLUSIVE


def test_script_of_small_state_is_short():
    known = leaking_states.main_default()
    text = reproduction_script(known.state, known.leaks[0].packet, "br-wan", known.leaks[0].reason)
    assert len(text.splitlines()) <= 135


@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_script_of_state_without_addresses_adds_addresses(space, protocol):
    routes = (leaking_states.default(4, WAN, "192.0.2.1"),)
    state = NetState((), leaking_states.standard_rules(4), routes)
    assert reproduced(space, state, Packet(4, parse_address(FAR[4]), protocol=protocol)) == EXIT_LEFT
    assert (
        reproduced(space, state, Packet(4, parse_address(FAR[4]), parse_address(ADDRESS[4]), protocol=protocol))
        == EXIT_LEFT
    )


def established(family, mark=0x30):
    """Return packets of an answered flow, by the beginning of the flow."""
    to, protocol = parse_address(FAR[family]), ICMP if family == 4 else ICMPV6
    inside = parse_address("192.168.1.7" if family == 4 else "fd00:db8::7")
    asked, answering = CtInfo("established", mark=mark), CtInfo("established", "reply", mark)
    here = {"udp": UDP, "tcp": TCP, "icmp": protocol}
    made = {f"local-{name}": Packet(family, to, protocol=one, flow=asked) for name, one in here.items()}
    made["local-tcp"] = evolve(made["local-tcp"], uid=1000, gid=1000, mark=9)
    made |= {f"answer-{name}": Packet(family, to, protocol=here[name], flow=answering) for name in ("udp", "tcp")}
    for name, one in here.items():
        through = Packet(family, to, inside, protocol=one, origin=FORWARD, iif="lan0", flow=asked)
        made[f"forward-{name}"] = through
        if name != "icmp":
            made[f"forward-answer-{name}"] = evolve(through, flow=answering)
    return made


@pytest.mark.parametrize("kind", sorted(established(4)))
@pytest.mark.parametrize("family", [4, 6])
def test_script_creates_flow_before_packet(space, family, kind):
    packet = established(family)[kind]
    direction = Match(Ct("direction"), packet.flow.direction)
    guard = only(Match(Ct("state"), "established"), direction, Match(Ct("mark"), 0x30))
    assert agreed(space, router(family, guard), packet) == EXIT_LEFT
    other = evolve(packet, flow=CtInfo("established", packet.flow.direction, 0x31))
    assert agreed(space, router(family, guard), other) == EXIT_NOT_LEFT


@pytest.mark.parametrize("kind", ["local-udp", "local-tcp", "forward-udp"])
def test_script_packet_without_flow_is_new(space, kind):
    packet = evolve(established(4)[kind], flow=CtInfo())
    guard = only(Match(Ct("state"), "established"))
    assert reproduced(space, router(4, guard), packet) == EXIT_NOT_LEFT
    assert reproduced(space, router(4, only(Match(Ct("state"), "new"))), packet) == EXIT_LEFT


@pytest.mark.parametrize(("kind", "state"), [("echo-reply", "established"), ("unreachable", "related")])
@pytest.mark.parametrize("family", [4, 6])
def test_script_kernel_reply_belongs_to_flow_of_request(space, family, kind, state):
    packet = evolve(packets(family)[kind], flow=CtInfo(state, "reply"))
    assert reproduced(space, router(family, only(Match(Ct("state"), state))), packet) == EXIT_LEFT
    assert reproduced(space, router(family, only(Match(Ct("state"), "new"))), packet) == EXIT_NOT_LEFT


def test_script_reports_flow_not_created(space):
    packet = Packet(4, parse_address(FAR[4]), flow=CtInfo("related"))
    status, out, _ = run(space, reproduction_script(router(4), packet, WAN, "a test"))
    assert status == EXIT_INCONCLUSIVE
    assert "the packet left by wan0" in out
    assert "caution: the script does not make its flow related" in out


def test_script_devices_have_addresses_and_groups(space):
    packet = Packet(4, parse_address(FAR[4]))
    guard = only(Match(Payload("ip", "saddr"), "192.0.2.77"), Match(Meta("oifgroup"), 5))
    state = evolve(router(4, guard), devices=(Device(WAN, ("192.0.2.77/24", "192.0.2.2/24"), group=5),))
    assert reproduced(space, state, packet) == EXIT_LEFT
    assert reproduced(space, evolve(state, devices=()), packet) == EXIT_NOT_LEFT


def test_script_creates_devices_named_by_tables(space):
    chains = (
        Chain("a", (Rule((Match(Meta("iif"), "one0"),)), Rule((Match(Meta("oif"), nft.AnonymousSet({"two0"})),)))),
        Chain("b", (Rule((nft.VerdictMap(Meta("iif"), frozenset({("three0", nft.ACCEPT)})),)),)),
    )
    assert reproduced(space, router(4, Table("inet", "t", chains)), Packet(4, parse_address(FAR[4]))) == EXIT_LEFT
