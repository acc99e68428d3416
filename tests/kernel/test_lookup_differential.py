"""Route lookups of the model and the kernel: generated rules and routes, and fixed cases.

NFTPOLICY_DIFFERENTIAL=N compares N lookups, NFTPOLICY_SEED=S uses another seed; so does
`python -m tests.kernel.lookup_differential N S`. A difference that was found and repaired is kept below, with a name.
"""

import os

import pytest

from nftpolicy.kernel.netlink.rtnetlink import RouteLookups, Rtnetlink
from nftpolicy.model.fib.router import Router
from tests.kernel.lookup_differential import (
    ERRNO,
    Query,
    compare,
    difference,
    install,
    kernel_answer,
    model_answer,
    prepare,
    read_state,
)
from tests.lab.netns import Namespace

pytestmark = pytest.mark.kernel

WANTED = int(os.environ.get("NFTPOLICY_DIFFERENTIAL", "3000"))
SEED = int(os.environ.get("NFTPOLICY_SEED", "1"))


@pytest.fixture(scope="module")
def space(able):
    with Namespace("lookups") as made:
        prepare(made)
        yield made


@pytest.fixture(scope="module")
def space_without_rules(able):
    """Namespace in which no ip rule is ever added: the kernel behaves differently until then."""
    with Namespace("lookups") as made:
        prepare(made)
        yield made


def report(done, left_open, differences, of):
    print(f"{done} look-ups compared, {of}, seed {SEED}: {len(differences)} differ, {left_open} left open")
    return "\n\n".join(map(str, differences))


def test_generated_lookups_agree_with_kernel(space):
    done, left_open, differences = space.call(compare, SEED, WANTED, timeout=60 + WANTED / 50)
    assert not differences, report(done, left_open, differences, "with rules")
    report(done, left_open, differences, "with rules")
    assert done == WANTED
    assert left_open < done / 10, "the model knows too little"


def test_generated_lookups_without_ip_rules_agree_with_kernel(space_without_rules):
    wanted = max(WANTED // 10, 300)
    done, left_open, differences = space_without_rules.call(compare, SEED, wanted, False, timeout=60 + wanted / 50)
    assert not differences, report(done, left_open, differences, "without rules")
    report(done, left_open, differences, "without rules")
    assert done == wanted


def forward(*devices):
    return tuple(f"set net/ipv4/conf/{one}/forwarding 1" for one in devices)


# Differences that generated lookups have found, shrunk: commands, a query, and the kernel's answer.
# "device", "device via gateway", "local", or an errno; "either" where what decides cannot be seen.
FOUND = {
    "a multicast packet does not see the gateway of a default route": (
        ["-4 route add default table 254 via 192.0.2.2 dev b0 onlink"],
        Query(4, "224.0.0.5"),
        "b0",
    ),
    "a packet of all hosts leaves by the default route": (
        ["-4 route add default table 254 via 192.0.2.2 dev b0 onlink"],
        Query(4, "255.255.255.255"),
        "b0",
    ),
    "an anycast address of a user's own leaves": (
        ["-6 route add anycast 2001:db8:9::/48 table 254 dev c0"],
        Query(6, "2001:db8:9:9::9"),
        "c0",
    ),
    "an anycast address of the kernel's own stays": (
        ["set net/ipv6/conf/all/forwarding 1"],
        Query(6, "2001:db8:1::"),
        "local",
    ),
    "a bound IPv4 socket needs no route": ([], Query(4, "203.0.113.77", oif="c0"), "c0"),
    "a bound IPv4 socket passes an unreachable route": (
        ["-4 route add unreachable default table 254"],
        Query(4, "203.0.113.77", oif="c0"),
        "c0",
    ),
    "a bound IPv4 socket passes a rule that prohibits": (
        ["-4 rule add priority 5 prohibit"],
        Query(4, "203.0.113.77", oif="c0"),
        "c0",
    ),
    "a bound IPv6 socket needs a route": ([], Query(6, "2a00::77", oif="c0"), "ENETUNREACH"),
    "a bound IPv6 socket passes an unreachable route, which is lo's": (
        [
            "-6 route add unreachable default table 100 metric 1",
            "-6 route add default table 254 via fe80::1 dev c0 onlink",
            "-6 rule add priority 5 lookup 100",
        ],
        Query(6, "2a00::77", oif="c0"),
        "c0 via fe80::1",
    ),
    "for IPv6 with a source the device is a mere wish": (
        ["-6 route add default table 254 via fe80::1 dev a0 onlink"],
        Query(6, "2a00::77", source="2001:db8:3::1", oif="c0"),
        "a0 via fe80::1",
    ),
    "the device of arrival is preferred among IPv6 routes of one metric": (
        [
            "-6 route add 2001:db8:9::/48 table 254 metric 1 pref low dev b0",
            "-6 route append 2001:db8:9::/48 table 254 metric 1 pref low dev c0",
        ],
        Query(6, "2001:db8:9::5", iif="c0"),
        "c0",
    ),
    "an IPv6 route of a better preference wins among those of one metric": (
        [
            "-6 route add fd00::/8 from 2001:db8::/32 table 254 metric 1 via fe80::1 dev a0 onlink",
            "-6 route append fd00::/8 from 2001:db8::/32 table 254 metric 2 pref high via fe80::1 dev b0 onlink",
        ],
        Query(6, "fd00:1::1", source="2001:db8:1::1"),
        "a0 via fe80::1",
    ),
    "behind the least metric the IPv6 routes compete by preference alone": (
        [
            "-6 route add 2001:db8:9::/48 table 254 metric 1 dev a0",
            "-6 route add 2001:db8:9::/48 table 254 metric 2 via fe80::1 dev b0 onlink",
            "-6 route add 2001:db8:9::/48 table 254 metric 3 pref high via fe80::2 dev b0 onlink",
        ],
        Query(6, "2001:db8:9::5", oif="b0"),
        "b0 via fe80::2",
    ),
    "a way that the group suppresses leaves the others of an IPv6 route": (
        [
            "-6 route add 2001:db8:9::/48 table 100 nexthop via fe80::1 dev a0 onlink nexthop via fe80::2 dev c0 onlink",
            "-6 rule add priority 5 lookup 100 suppress_ifgroup 5",
        ],
        Query(6, "2001:db8:9::5"),
        "either",
    ),
    "a device's group counts": (
        [
            "-4 route add default table 100 dev b0",
            "-4 route add default table 254 dev a0",
            "-4 rule add priority 5 lookup 100 suppress_ifgroup 5",
        ],
        Query(4, "203.0.113.77"),
        "a0",
    ),
    "a route for some sources hides the others to its destination": (
        [
            "-6 route add 2001:db8:9::/48 from fd00::/8 table 254 via fe80::1 dev a0 onlink",
            "-6 route add 2001:db8:9::/48 table 254 via fe80::1 dev b0 onlink",
            "-6 route add default table 254 via fe80::1 dev c0 onlink",
        ],
        Query(6, "2001:db8:9::5"),
        "either",
    ),
    "default routes for some sources hide nothing": (
        [
            "-6 route add default from fd00::/8 table 254 via fe80::1 dev a0 onlink",
            "-6 route add default table 254 via fe80::1 dev b0 onlink",
        ],
        Query(6, "2001:db8:9::5"),
        "b0 via fe80::1",
    ),
    "a rule on the source does not hold before there is one": (
        [
            "-6 route add default table 100 via fe80::1 dev a0 onlink",
            "-6 route add default table 254 via fe80::1 dev b0 onlink",
            "-6 rule add priority 5 from 2001:db8::/32 lookup 100",
        ],
        Query(6, "2a00::77"),
        "b0 via fe80::1",
    ),
    "not l3mdev looks into main": (
        [
            "-4 route add default table 254 dev a0",
            "-4 route add default table 100 dev b0",
            "-4 rule add priority 5 not fwmark 5 l3mdev",
            "-4 rule add priority 6 lookup 100",
        ],
        Query(4, "203.0.113.77"),
        "a0",
    ),
    "a throw goes on with the next rule": (
        [
            "-4 route add throw 10.9.0.0/16 table 100",
            "-4 route add default table 100 dev b0",
            "-4 route add default table 254 dev a0",
            "-4 rule add priority 5 lookup 100",
        ],
        Query(4, "10.9.9.9"),
        "a0",
    ),
    "a route with a TOS comes before one with a lower metric": (
        [
            "-4 route add 10.9.0.0/16 tos 0x10 table 254 metric 3 dev a0",
            "-4 route add 10.9.0.0/16 table 254 metric 1 dev b0",
        ],
        Query(4, "10.9.9.9", tos=0x10),
        "a0",
    ),
    "an IPv4 rule looks at three bits of the TOS": (
        ["-4 route add default table 100 dev a0", "-4 rule add priority 5 tos 0x10 lookup 100"],
        Query(4, "203.0.113.77", tos=0xB0),
        "a0",
    ),
    "an IPv6 rule looks at all but the last two": (
        [
            "-6 route add default table 100 dev a0",
            "-6 route add default table 254 dev b0",
            "-6 rule add priority 5 tos 0x10 lookup 100",
        ],
        Query(6, "2a00::77", tos=0xB0),
        "b0",
    ),
    "default routes by several gateways are taken by turns": (
        [
            "-4 route add default table 254 via 203.0.113.1 dev a0 onlink",
            "-4 route append default table 254 via 192.0.2.2 dev b0 onlink",
        ],
        Query(4, "203.0.113.77"),
        "either",
    ),
    "a local route of any prefix makes its addresses ours": (
        [
            "-4 route add local 10.9.0.0/16 table 255 dev a0",
            "-4 route add default table 254 dev b0",
        ],
        Query(4, "203.0.113.77", source="10.9.9.9"),
        "b0",
    ),
    "unless it has a TOS": (
        [
            "-4 route add local 10.9.0.0/16 tos 0x10 table 255 dev a0",
            "-4 route add default table 254 dev b0",
        ],
        Query(4, "203.0.113.77", source="10.9.9.9", tos=0x10),
        "ENETUNREACH",
    ),
    "our own address does not come in from outside": (
        [*forward("a0"), "-4 route add default table 254 dev b0"],
        Query(4, "203.0.113.77", source="10.2.0.1", iif="a0"),
        "EINVAL",
    ),
    "unless the device accepts it": (
        [*forward("a0"), "set net/ipv4/conf/a0/accept_local 1", "-4 route add default table 254 dev b0"],
        Query(4, "203.0.113.77", source="10.2.0.1", iif="a0"),
        "b0",
    ),
    "a strict reverse path filter wants the same device": (
        [*forward("a0"), "set net/ipv4/conf/a0/rp_filter 1", "-4 route add default table 254 dev b0"],
        Query(4, "203.0.113.77", source="203.0.113.9", iif="a0"),
        "EINVAL",
    ),
    "a loose one wants any": (
        [*forward("a0"), "set net/ipv4/conf/a0/rp_filter 2", "-4 route add default table 254 dev b0"],
        Query(4, "203.0.113.77", source="203.0.113.9", iif="a0"),
        "b0",
    ),
    "the way back of a broadcast is asked for no address": (
        [
            "set net/ipv4/conf/b0/rp_filter 2",
            "-4 rule add priority 114 from 10.1.0.0/16 iif lo unreachable",
        ],
        Query(4, "10.1.255.255", source="10.2.0.7", iif="b0"),
        "local",
    ),
    "the way back has no ports if only rules for lo ask for them": (
        [
            "-4 route add broadcast 10.1.2.3/32 table 254 metric 3 dev c0",
            "-4 rule add priority 337 iif lo ipproto udp blackhole",
        ],
        Query(4, "10.2.0.1", source="10.1.2.3", iif="b0"),
        "EINVAL",
    ),
    "a loopback address does not leave": (
        ["-4 route add default table 254 dev b0"],
        Query(4, "203.0.113.77", source="127.0.0.1"),
        "EINVAL",
    ),
    "unless the device routes it": (
        ["set net/ipv4/conf/b0/route_localnet 1", "-4 route add default table 254 dev b0"],
        Query(4, "203.0.113.77", source="127.0.0.1"),
        "b0",
    ),
    "a goto skips what is between": (
        [
            "-4 route add default table 254 dev a0",
            "-4 rule add priority 5 goto 9",
            "-4 rule add priority 6 prohibit",
            "-4 rule add priority 9 nop",
        ],
        Query(4, "203.0.113.77"),
        "a0",
    ),
    "a goto to nowhere goes on": (["-4 rule add priority 5 goto 9", "-4 rule add priority 6 prohibit"], Query(4, "10.1.0.9"), "EACCES"),
    "the suppressor does not hide an error": (
        [
            "-4 route add prohibit default table 100",
            "-4 rule add priority 5 lookup 100 suppress_prefixlength 0",
        ],
        Query(4, "10.1.0.9"),
        "EACCES",
    ),
    "a route by a device without carrier is passed by where that counts": (
        [
            "set net/ipv4/conf/d0/ignore_routes_with_linkdown 1",
            "-4 route add 10.9.0.0/16 table 254 dev d0",
            "-4 route add default table 254 dev a0",
        ],
        Query(4, "10.9.9.9"),
        "a0",
    ),
    "and taken where it does not": (
        [
            "set net/ipv4/conf/d0/ignore_routes_with_linkdown 0",
            "-4 route add 10.9.0.0/16 table 254 dev d0",
            "-4 route add default table 254 dev a0",
        ],
        Query(4, "10.9.9.9"),
        "d0",
    ),
    "a gateway may be of the other family": (
        ["-4 route add default table 254 via inet6 fe80::1 dev c0"],
        Query(4, "203.0.113.77"),
        "c0 via fe80::1",
    ),
}  # fmt: skip
# The same without any added rule.
FOUND_FRESH = {
    "the tables local and main are one": (
        ["-4 route add 127.1.0.0/16 table 254 dev a0"],
        Query(4, "127.1.2.3"),
        "either",
    ),
    "a throw in the local table ends the search in main": (
        ["-4 route add throw 10.1.2.0/24 table 255"],
        Query(4, "10.1.2.3"),
        "either",
    ),
    "an unreachable route in main stays one": (["-4 route add unreachable 10.9.0.0/16 table 254"], Query(4, "10.9.9.9"), "EHOSTUNREACH"),
}  # fmt: skip
# So that each starts from the same.
PLAIN = [
    *(
        f"set net/ipv4/conf/{device}/{name} 0"
        for device in ("all", "a0", "b0", "c0", "d0")
        for name in ("rp_filter", "accept_local", "src_valid_mark", "route_localnet", "ignore_routes_with_linkdown")
    ),
    *(f"set net/ipv4/conf/{device}/forwarding 0" for device in ("a0", "b0", "c0", "d0")),
    "set net/ipv6/conf/all/forwarding 0",
]


def answer_text(answer):
    if isinstance(answer, int):
        return next(name for name, number in ERRNO.items() if number == answer)
    if answer.kind in ("local", "broadcast", "anycast") and answer.device == "lo":
        return "local"
    return f"{answer.device} via {answer.gateway}" if answer.gateway else answer.device


def ask(commands, query, has_rules):
    install([*PLAIN, *commands], has_rules)
    with RouteLookups() as lookups:
        kernel = kernel_answer(lookups, query)
    return kernel, model_answer(Router(read_state(Rtnetlink())), query)


def check(space, case, has_rules):
    commands, query, expected = case
    kernel, model = space.call(ask, list(commands), query, has_rules)
    assert difference(query, kernel, model, has_rules) is None, (kernel, model)
    if expected == "either":
        assert model.outcome == "unknown" or model.unsupported
        return
    assert answer_text(kernel) == expected
    assert model.outcome != "unknown"


@pytest.mark.parametrize("name", FOUND)
def test_lookup_case_agrees_with_kernel(space, name):
    check(space, FOUND[name], True)


@pytest.mark.parametrize("name", FOUND_FRESH)
def test_lookup_case_without_ip_rules_agrees_with_kernel(space_without_rules, name):
    check(space_without_rules, FOUND_FRESH[name], False)
