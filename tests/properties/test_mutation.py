"""Mutants of compiled states: a proof refutes each of them, or an excuse says why it is harmless.

A sample of the mutants runs by default, always the same; NFTPOLICY_MUTANTS=all runs all of them.
"""

import os
import re
import zlib
from collections import Counter as Tally
from functools import cached_property
from pathlib import Path

import pytest
from attrs import evolve, frozen

from nftpolicy.compiler.compile import HostFacts, compile_policy
from nftpolicy.model.trace import Model
from nftpolicy.netstate import nft
from nftpolicy.netstate.state import Device
from nftpolicy.policy.load import load
from nftpolicy.proof import verdict
from nftpolicy.proof.assumptions import add_assumed_environment, sample_device
from nftpolicy.proof.context import ProofContext
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.usability_cases import usability_cases
from tests import packet_strategies, state_mutants
from tests.finding_invariants import assert_findings_are_sound

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("rulesets/*.toml"), *ROOT.glob("tests/golden/*/policy.toml")])
ALL = os.environ.get("NFTPOLICY_MUTANTS") == "all"
SAMPLE = 48  # one of so many
_ARPHRD_NONE = 0xFFFE  # include/uapi/linux/if_arp.h
PACKETS = 400  # beside those that name a word each
# One policy is compiled for a machine whose uplink is a bridge, so that the chains of its ports are there.
PORTS = {"gluon-fastd.toml": {"br-wan": ("eth0", "eth1")}}

# Mutants that stay proved, and why that is right. First what has a second line behind it...
SPARE = [
    (
        r"^(rule gone|statement gone|match negated): inet \S+ \S+\.arrival: ct direction original ct mark (& \S+ )?!= \d+ meta mark set ",
        "replies in a flow without the mark are no answers, whatever the mark of the packet that causes them",
    ),
    (
        r"nftpolicy arrival: ct status ! confirmed ct mark ",
        "no flow here inherits a mark: leaks/test_forged_arrivals.py",
    ),
    (r"match gone: .* restore: .*\[meta oifname != \"lo\"\]", "no packet in a flow of an uplink is sent by lo"),
    (r"route gone: IPv\d table \d+: unreachable ", "the ip rule behind that of the mark ends like it"),
    (r"match gone: .*\.link: @ll,96,16 0x0806 .*\[(meta length|@nh)", "bytes behind ARP: leaks/test_exempt_frames.py"),
    (
        r"ip rule (gone|with another mark): IPv6: (5\d8|848)",
        "marks and link-local hosts inside: kernel/test_routing_facts.py",
    ),
    (r"ip rule gone: IPv\d: (890|33100)", "UDP replies: leaks/test_reply_matrix.py"),
    (r"match gone: .*\.link: .*\[meta protocol ip6\]", "P1 is refuted where an IPv6 frame is exempt"),
    (r"gone: .*\.answers: counter name \S+\.unanswered\" drop", "what comes so far, the base chain drops"),
    (r"policy turned: inet nftpolicy arrival: ", "a drop without a counter counts as that of a firewall"),
    (r"\.arrival: fib daddr type unicast udp sport 67 ", "OFFERs on a bridge: leaks/test_race_windows.py"),
    (r"ip rule gone: IPv\d: 870", "sockets that are bound to the uplink: kernel/test_explain.py"),
    (r"verdict turned: \S+ nftpolicy forward: .*\[accept\]", "a drop without a counter counts as that of a firewall"),
    (r"policy turned: \S+ nftpolicy (guard|device-\S+): drop", "the last rule of the chain drops the rest"),
    (
        r"match gone: .*\b(restore|arrival|mark-owner): .*\[ct direction (original|reply)\]",
        "two of these tests say the same",
    ),
    (r"match gone: .*\barrival: .*\[meta mark (& \S+ )?!= 0\]", "it spares a write that changes nothing"),
    (r"match gone: .*\barrival: .*\[ct mark (& \S+ )?!= \d+\]", "it spares a write that changes nothing"),
    (r"match gone: .* dns-redirect: .*\[meta l4proto \{ tcp, udp \}\]", "nft wants it in front of a port to go to"),
    (r"match gone: .* (names|dns): .*\[meta l4proto \{ tcp, udp \}\]", "no other transport asks for names at port 53"),
    # ... then what is beyond the claim ...
    (
        r"nftpolicy dns-unrouted:",
        "without it queries that are not redirected are lost at lo: leaks/test_query_routes.py",
    ),
    (r"arrival: udp dport .* update @", "a route may lead a UDP reply inside: leaks/test_udp_replies.py"),
    (
        r"inside: ct (direction original udp sport|status ! confirmed meta l4proto udp) ",
        "a route may lead a UDP reply inside: leaks/test_udp_replies.py",
    ),
    (
        r"match gone: .* @wan.askers\d .*\[meta l4proto udp\]",
        "only TCP with the address of another device is dropped, too",
    ),
    (
        r"(gone|verdict turned): netdev \S+ device-\S+: @ll,96,16 < 0x0600 ",
        "a bridge's own BPDUs: leaks/test_exempt_frames.py",
    ),
    (r"destination: fib daddr type .* update @", "it only remembers who asked: leaks/test_source_addresses.py"),
    (
        r"match gone: .*\.arrival: ct direction original ct status ! confirmed .*\[ct status ! confirmed\]",
        "P1 is refuted where packets are answered; elsewhere, replies in a flow with the mark are dropped",
    ),
    (
        r"verdict turned: .*\.arrival: ct direction original ct mark (& \S+ )?!= \d+ meta mark set ",
        "no packet of a flow that began elsewhere arrives by an uplink",
    ),
    (
        r"ip rule gone: IPv\d: (5\d5|855|40000)$",
        "a marked packet finds the unreachable route of its table; without any route, a packet is lost as well",
    ),
    (r"sysctl gone", "sysctls are compared, and no packet of the model depends on ours"),
    (r"ip rule with another mark: IPv\d: \d+ unreachable", "each uplink's table ends in an unreachable route"),
    (r"value 'anycast' gone: .* fib daddr", "no state here has an anycast address"),
]
# Of packets of other machines, P3 tries those without NAT; answers and errors are in leaks/test_forward.py.
FORWARDS = [
    (r"nftpolicy restore: icmp\S* type ", "no packet that is tried is an error about a forwarded one"),
    (r"nftpolicy \w+\.inward: |goto \w+\.inward", "answers with NAT"),
    (r"statement gone: .*\.arrival: ct direction original (tcp|udp) dport ", "requests to a published port"),
    (r"nftpolicy forward: fib daddr type ", "no packet that is tried is to this machine by such a device"),
    (r"match gone: .* forward: .*\[meta iifname @\w+.publish-devices\]", "the guard asks for the device again"),
    (r"match gone: .* forward-nat: ", "the guard lets no other foreign source leave"),
    (r"nftpolicy inside: meta iifname .*not-local", "requests to other ports"),
    (r"nftpolicy \w+\.mark-owner: meta iifname .*not-forwarded", "the rules behind it drop the rest"),
    (r"match gone: .*\.mark-owner: .*\[fib saddr \. oif type local\]", "packets without NAT"),
]
# ... and what a policy has no use for.
IDLE = {
    "04-kernel-service": [
        (r"(rule gone|verdict turned): .*mark-owner: .*@wan.group-ports accept", "names are asked of the resolver alone"),
        (r"element gone: .*@wan.group-ports", "names are asked of the resolver alone"),
        (r"match gone: .*mark-owner: .*\[th dport 53\]", "names are asked of the resolver alone"),
        (r"type changed: .* restore: route", "of answers there is only ping, which has the mark of its cause"),
    ],
    "05-no-resolver": [
        (r"nftpolicy (inside|eth.stray)(:|$)", "nothing is inside"),
        (r"nftpolicy restore:", "of answers there is only TCP, whose sockets have the mark of their SYN"),
        (r"arrival: (meta mark != 0 meta mark set 0x0|meta iifname \"lo\" accept)", "nobody inside could borrow the mark"),
        (r"arrival: fib daddr|nftpolicy eth.destination:", "there are no addresses of other devices"),
        (r"guard: meta oifname \"lo\" goto loopback \[goto loopback\]", "loopback accepts everything"),
        (r"element gone: .*@eth.users", "only a resolver asks who its clients are"),
    ],
    "06-gateways": [
        (r"match gone: .*\bmark-owner: .*\[ct mark ", "there are no answers"),
        (r"match gone: .* restore: .*\[meta mark ", "no service answers in a flow from the uplink"),
        (r"type changed: .* restore: route", "there are no answers"),
        (r"guard: meta oifname \"lo\" goto loopback \[goto loopback\]", "loopback accepts everything"),
        (r"element gone: .*@wan.groups", "only a resolver asks who its clients are"),
    ],
    "gluon-wireguard": [(r"element gone: .*@wan.group-ports: \(800, '\w+', 53\)", "names are asked of the resolver alone")],
    "laptop-wireguard": [
        (r"(rule gone|verdict turned): .*mark-owner: .*@network.group-ports accept", "names are asked of the resolver alone"),
        (r"element gone: .*@network.group-ports", "names are asked of the resolver alone"),
        (r"type changed: .* restore: route", "there are no answers"),
    ],
    "dual-uplink": [(r"match (gone|negated): .* lte.mark-owner: .*\[ct mark ", "there are no answers")],
    "server-egress": [
        (r"guard: meta oifname \"lo\" goto loopback \[goto loopback\]", "loopback accepts everything"),
        (r"element gone: .*@management.groups", "only a resolver asks who its clients are"),
    ],
    "server-port": [
        (r"guard: meta oifname \"lo\" goto loopback \[goto loopback\]", "loopback accepts everything"),
        (r"mark-owner: (meta skuid 0-4294967294 |ct direction original ct state established )", "no service uses this uplink"),
    ],
    "11-uid-rule": [
        (r"verdict turned: .* lte.guard: meta skuid @lte.unmarked ", "this user may send anywhere"),
        (r"match (gone|negated): .* lte.mark-owner: .*\[ct mark ", "there are no answers"),
        (r"element gone: .*@lte.users", "only a resolver asks who its clients are"),
    ],
    "12-forward": [
        *FORWARDS,
        (r"match gone: .*lte.guard: .*foreign-source.*\[meta iifname ", "this uplink forwards with NAT only"),
        (r"nftpolicy lte\.mark-owner: ct direction original ct state established ", "no service uses this uplink"),
        (r"match gone: .*lte\.mark-owner: ct direction reply .*\[ct mark ", "there are no answers"),
        (r"element gone: .*@lte.forward-devices", "this uplink forwards with NAT only"),
        (r"wan\.arrival: ct direction reply ct mark ", "answers without NAT: leaks/test_forward.py"),
        (r"match gone: .*mark-owner: .*fib saddr type local .*\[meta iifname ", "no other packet has such a source"),
        (r"guard: meta oifname \"lo\" goto loopback \[goto loopback\]", "loopback accepts everything"),
        (r"element gone: .*@wan.groups", "only a resolver asks who its clients are"),
        (r"match gone: .*foreign-source.*\[fib saddr ", "no socket of this machine uses this uplink"),
        (r"count gone: .*kernel\.ndp", "the packets that are tried solicit no neighbour by unicast"),
    ],
    "router-wireguard": [
        *FORWARDS,
        (r"element gone: .*@internet.users", "only a resolver asks who its clients are"),
        (r"match gone: .*foreign-source.*\[meta iifname ", "forwards and published ports have the same device"),
        (r"guard: meta oifname \"lo\" goto loopback \[goto loopback\]", "loopback accepts everything"),
    ],
    "14-tunnels": [
        (r"match gone: .*\.mark-owner: ct direction reply .*\[ct mark ", "there are no answers"),
        (r"ip rule (gone|with another mark): IPv6: 520", "no service of this uplink uses IPv6"),
        (r"type changed: .* restore: route", "there are no answers"),
        (r"match gone: .* tunnels: .*\[meta mark & 0x3 != [12]\]", "no service of the other uplink sends to these ends"),
        (r"match gone: .* restore: .*\[meta mark ", "there are no answers"),
        (r"match gone: .* lte.guard: ip6 .*foreign-source.*\[fib ", "no service of this uplink uses IPv6"),
        (r"ip rule gone: IPv\d: 86[56]", "the uplink's table has a default route; without one, the guard drops them inside"),
        (r"guard: meta oifname \"lo\" goto loopback \[goto loopback\]", "loopback accepts everything"),
    ],
    "15-local-network": [
        (r"match gone: .*dhcpv6-server.*\[(udp sport|ip6 saddr) ", "these are link-local addresses, and the LAN has all of them"),
        (r"value 'fc00::/7' gone: .*exempt\.(mdns|ssdp)", "one address of each exemption is tried"),
        (r"match gone: .*@wan\.lan\.\S+ .*\[meta l4proto \{ tcp, udp \}\]", "these have every protocol of the network"),
        (r"ip rule gone: IPv\d: 880", "no route here leads these packets elsewhere: leaks/test_local_networks.py"),
        (r"count gone: .*@wan\.lan\.", "no packet that is tried is one to these networks"),
        (r"nftpolicy wan\.(mark-owner|answers|arrival):", "no service and no answer needs the mark"),
        (r"guard: meta oifname \"lo\" goto loopback \[goto loopback\]", "loopback accepts everything"),
    ],
    "17-clat": [
        (r"element gone: .*@wwan.users", "only a resolver asks who its clients are"),
        (r"wwan\.arrival: .*(64:ff9b::/96|icmpv6 type) .* mark set ", "the guard asks for device, direction and prefix"),
        (r"(rule gone|match \w+): .*wwan\.guard: meta iifname ", "no service of the kernel passes without an owner"),
        (r"count gone: .*wwan\.(guard|clat): ", "no packet that is tried is one of the translator"),
        (r"match gone: .*wwan\.clat: .*\[ip saddr != 0\.0\.0\.0\]", "no DHCP client asks by this device"),
        (r"nftpolicy (restore|wwan\.mark-owner): ct direction reply ", "there are no answers"),
        (r"type changed: .* restore: route", "there are no answers"),
        (r"guard: meta oifname \"lo\" goto loopback \[goto loopback\]", "loopback accepts everything"),
    ],
    "03-two-uplinks": [
        (r"element gone: .*@wired.addresses6: '2001:db8:6::/56'", "one known address is tried"),
        (r"(match gone|match negated|rule gone): .* lte.mark-owner: .*ct mark ", "there are no answers"),
        (r"match gone: .* wired.destination: .*\[fib daddr ", "the guard lets no packet to these addresses leave inside"),
        (r"match gone: .* wired.guard: .*foreign-source.*\[ip6 saddr != ::\]", "no exempt packet is without a source"),
    ],
    "16-root-services": [(r"count gone: .* dns: .*meta skuid 0 ", "no query of root that is tried is marked and not redirected")],
    "vpn-killswitch": [
        (r"match gone: .*\bmark-owner: .*\[ct mark ", "there are no answers"),
        (r"type changed: .* restore: route", "there are no answers"),
    ],
}  # fmt: skip


@frozen(slots=False)
class Case:
    """Policy of a file on a host."""

    path: Path

    @property
    def name(self):
        return self.path.parent.name if self.path.name == "policy.toml" else self.path.stem

    @cached_property
    def policy(self):
        return load(self.path.read_bytes(), str(self.path))[0]

    @property
    def ports(self):
        return PORTS.get(self.path.name, {})

    @cached_property
    def claim(self):
        return build_spec(self.policy, self.ports)

    @cached_property
    def state(self):
        return compile_policy(self.policy, HostFacts(bridge_ports=self.ports))

    @cached_property
    def proof(self):
        return prove(self.state, self.claim)

    @cached_property
    def packets(self):
        context = ProofContext(add_assumed_environment(self.state, self.claim)[0], self.claim.devices, self.claim.masks)
        used = (case.packet for case in usability_cases(context, self.claim, self.claim.inside or ()))
        return [*packet_strategies.some_packets(self.policy, PACKETS, self.ports), *used]

    @cached_property
    def counted(self):
        return self.counts(self.state)

    def counts(self, state):
        """Return for each packet its outcome and the counters that it passed."""
        model = Model(add_assumed_environment(state, self.claim)[0])
        return [(walk.outcome, walk.device, matched_counters(walk)) for walk in map(model.trace, self.packets)]

    def objection(self, mutant):
        """Return the way in which a mutant is noticed; None if it is not."""
        proof = prove(mutant.state, self.claim)
        assert_findings_are_sound(proof, self.claim)
        if proof.verdict != verdict.PROVED:
            return min(one.property for one in proof.findings if one.deciding and one.verdict != verdict.PROVED)
        if set(proof.assumptions) - set(self.proof.assumptions):
            return "assumed"  # told to the reader
        if any(re.search(pattern, str(mutant)) for pattern, _ in self.spare):
            return "spare"
        link_less = evolve(mutant.state, tables=tuple(one for one in mutant.state.tables if one.family != "netdev"))
        if prove(link_less, evolve(self.claim, frames=False)).verdict != verdict.PROVED:
            return "doubled"  # both guards stand in the way, and this one would be missed where there is no other
        if prove(self.with_bare_devices(mutant.state), self.claim).verdict != verdict.PROVED:
            return "bare"  # uplinks whose devices have no link header
        before_after = zip(self.counted, self.counts(mutant.state), strict=True)
        changed = [(old, new) for old, new in before_after if old != new]
        if changed and all(old[:2] == new[:2] for old, new in changed):
            return "counted otherwise"
        return None

    def with_bare_devices(self, state):
        """Return the state on a machine whose devices have no link header, as those of LTE modems."""
        names = [*self.claim.devices, *map(sample_device, self.claim.inside or ())]
        return evolve(state, devices=tuple(Device(name, link_type=_ARPHRD_NONE) for name in names))

    @property
    def spare(self):
        return [*SPARE, *self.idle]

    @property
    def idle(self):
        return next((idle for name, idle in IDLE.items() if self.name.endswith(name)), [])


def matched_counters(walk):
    """Return the names of the counters of the rules that a packet met."""
    rules = (one.subject for one in walk.steps if isinstance(one.subject, nft.Rule))
    return tuple(one.name for rule in rules for one in rule.statements if isinstance(one, nft.CounterRef))


def cases():
    """Return one case for each different policy: some files of tests/golden equal those in rulesets."""
    found = {}
    for path in reversed(FILES):
        case = Case(path)
        found[repr(case.policy)] = case
    return list(found.values())


CASES = cases()


def is_chosen(mutant):
    """Return True for the guard and its hooks, and for one in SAMPLE of the other mutants."""
    whole = mutant.kind in ("table gone", "base chain gone", "rules gone")
    return ALL or whole or zlib.crc32(str(mutant).encode()) % SAMPLE == 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_mutant_is_refuted_or_excused(case, capsys):
    assert case.proof.verdict == verdict.PROVED
    every = list(state_mutants.mutants(case.state))
    chosen = [mutant for mutant in every if is_chosen(mutant)]
    found = [(mutant, case.objection(mutant)) for mutant in chosen]
    tally = Tally(how for _, how in found)
    with capsys.disabled():
        told = ", ".join(f"{how} {count}" for how, count in sorted(tally.items(), key=str))
        print(f"\n{case.name}: {len(chosen)} of {len(every)} mutants: {told}")
    unnoticed = [str(mutant) for mutant, how in found if how is None]
    assert not unnoticed, "\n".join(unnoticed)
    if ALL:
        said = [str(mutant) for mutant, how in found if how == "spare"]
        assert not [pattern for pattern, _ in case.idle if not any(re.search(pattern, one) for one in said)]


@pytest.mark.parametrize("file", ["gluon-fastd.toml"])
def test_mutation_test_detects_a_blind_prover(monkeypatch, file):
    """Replace the prover by one that proves everything: the mutants of the guard stay unnoticed."""
    case = next(one for one in CASES if one.path.name == file)
    gone = next(
        one for one in state_mutants.mutants(case.state) if str(one) == "base chain gone: inet nftpolicy guard: "
    )
    assert case.objection(gone) == "P1"
    monkeypatch.setattr(f"{__name__}.prove", lambda state, wanted: case.proof)
    assert case.objection(gone) is None
