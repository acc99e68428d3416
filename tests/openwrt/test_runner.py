"""The runner on a router reaches the state of `nftpolicy apply`, and keeps it."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.integration.openwrt import tree
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from nftpolicy.policy.objects import Policy
from nftpolicy.runtime.apply.executor import plan_change
from nftpolicy.runtime.apply.state_dir import StateDir
from nftpolicy.runtime.apply.step_text import plan_lines
from tests import policy_strategies
from tests.guarded_lab import GLUON
from tests.lab.daemons import tool
from tests.lab.limits import limit
from tests.lab.netns import Namespace, wait_until
from tests.unit.forked_namespace import kernel, linux, normal, observe

from .router import NFTABLES, ROOT, STATE, Router, right, subscribed

pytestmark = [pytest.mark.slow, pytest.mark.kernel, pytest.mark.usefixtures("able")]

# With NFTPOLICY_POLICIES=200 it is 200 policies, in a few minutes.
POLICIES = int(os.environ.get("NFTPOLICY_POLICIES", "8"))
NFT = tool("nft")
DEVICES = st.sampled_from(policy_strategies.COMMON)


def gluon() -> Policy:
    return load(GLUON.read_bytes())[0]


TUNNELS = """
[service.tunnels]
uplink = "wan"
kernel = true
ports = ["gre", "6in4", "ipip", "tcp/2049", "tcp/20048-20050"]
to = ["198.51.100.7", "203.0.113.0/24", "2001:db8::7", "2001:db8:7::/64"]
"""


def users() -> Policy:
    """Two users without marks, whose rules have one priority, and tunnels."""
    service = '[service.{0}]\nuplink = "wan"\nuser = {1}\nmarks = "uid-rule"\n'
    more = "".join(service.format(f"user{number}", number) for number in (1301, 1302))
    return load(f"{GLUON.read_text()}\n{more}{TUNNELS}".encode())[0]


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    with kernel() as space:
        made = Router(space, gluon())
        for name, body in LOGGED.items():
            made.program(name, body.replace("REAL", str(tool(name))))
        yield made


@pytest.fixture
def applied(router: Router) -> Iterator[Router]:
    router.write(gluon())
    router.nftpolicy("apply")
    yield router


# What changes the kernel is written down on its way to it.
DONE = "/run/done"
LOGGED = {
    "ip": f"""case " $* " in
*" -batch "*) sed "s/^/ip $2 /" | tee -a {DONE} | sed "s/^ip $2 //" | REAL "$@" ;;
*) exec REAL "$@" ;;
esac""",
    # A table that is asleep is only there to be read.
    "nft": f"""[ "$1 $2" = "-f -" ] || exec REAL "$@"
text=$(cat)
case $text in *-wanted*) ;; *) echo nft >>{DONE} ;; esac
echo "$text" | REAL "$@\"""",
}


def left_to_do(policy: Policy) -> list[str]:
    """Return the changes that the Python runtime would make. Runs in the namespace."""
    return plan_lines(plan_change(linux(), policy, StateDir(Path("/run/memory"))).plan)


def done(router: Router) -> list[str]:
    """Return the changes of the runner since the last call."""
    log = router.space.outside(DONE)
    text = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    return text.splitlines()


SAME = {
    "protocol": "proto",
    "delete": "del",
    "replace": "add",
    "nft transaction:": "nft",
    "lookup main": "lookup 254",
    "/0xffffffff": "",
    "/32 iif": " iif",
    "/128 iif": " iif",
    " scope link": "",
    "metric 1024 src 127.0.0.1": "scope 253 src 127.0.0.1 metric 1024",
    "metric 1024 src ::1": "src ::1 metric 1024",
}


def ways(steps: list[str], family: int) -> list[list[str]]:
    """Return the steps of rtnetlink one by one, and the place of the nft step among them, in the words of the runner.

    Adjacent steps of one kind have any order. A route replaces the route with its table and metric, so the deletion of
    that route is not a step.
    """
    found = []
    for step in steps:
        for word, same in SAME.items():
            step = step.replace(word, same)
        step = step.replace({4: "/32 ", 6: "/128 "}[family], " ")  # ip prints a single address without its length
        if step.startswith((f"ip -{family} ", "nft")):
            found.append(step)
    replaced = {step[step.index(" table ") :] for step in found if "route add" in step}
    found = [step for step in found if "route del" not in step or step[step.index(" table ") :] not in replaced]
    return [sorted(some) for _, some in itertools.groupby(found, key=lambda step: step.split()[:4])]


def held(paths: list[str]) -> NetState:
    return normal(observe(linux(), paths))


@settings(max_examples=POLICIES, phases=(Phase.explicit, Phase.generate))
@given(policy=policy_strategies.policies(DEVICES))
@example(policy=users())
def test_runner_steps_and_result_equal_apply(router: Router, policy: Policy) -> None:
    """From any previous policy, by the same steps in the same order; apply has nothing to do afterwards."""
    router.write(policy)
    done(router)
    wanted_steps = router.space.call(left_to_do, policy)
    router.nftpolicy("apply")
    steps = done(router)
    for family in (4, 6):
        assert ways(steps, family) == ways(wanted_steps, family)
    assert router.space.call(left_to_do, policy) == []
    wanted = compile_policy(policy)
    found = router.space.call(held, [one.path for one in wanted.sysctls])
    absent = {one.path for one in wanted.sysctls} - {one.path for one in found.sysctls}
    # The router has no devices inside, which a forward or published port may name.
    assert all(router.space.run(["test", "-e", f"/sys/class/net/{path.split('/')[3]}"], check=False).returncode
               for path in absent)  # fmt: skip
    assert found == normal(evolve(wanted, sysctls=tuple(one for one in wanted.sysctls if one.path not in absent)))
    assert right(router)


def test_control_runner_result_of_other_policy_differs(applied: Router) -> None:
    """The control of the test above."""
    other = evolve(gluon(), inside=("bat0",))
    assert applied.space.call(left_to_do, other) != []
    applied.write(other)
    assert not right(applied)


def test_runner_release_lasts_until_apply(router: Router) -> None:
    router.nftpolicy("release")
    paths = [one.path for one in compile_policy(gluon()).sysctls]
    before = router.space.call(held, paths)
    router.write(gluon())
    router.nftpolicy("apply")
    assert router.space.call(held, paths) != before
    router.nftpolicy("release")
    assert router.space.call(held, paths) == before
    router.nftpolicy("reconcile")  # what a hotplug event would do
    assert router.space.call(held, paths) == before
    assert not router.file(tree.GUARD_PATH).exists(), "fw4 would load it with the next reload"
    assert "released" in router.nftpolicy("status", check=False).stdout
    router.nftpolicy("apply")
    assert router.file(tree.GUARD_PATH).exists()
    assert right(router)
    router.nftpolicy("release")


DAMAGES = {
    "guard": "nft delete table inet nftpolicy",
    "link guard": "nft delete chain netdev nftpolicy device-br-wan",
    "ip rules, IPv4": "ip rule del priority 515",
    "ip rules, IPv6: obsolete": "ip -6 rule add priority 700 lookup 77 protocol 78",
    "routes, IPv4": "ip route flush table 1",
    "routes, IPv6: obsolete": "ip -6 route add 2001:db8::/32 dev br-wan table 77 proto 78",
    "sysctl": "sh -c 'echo 0 >/proc/sys/net/ipv4/fwmark_reflect'",
}


@pytest.mark.parametrize("word", DAMAGES)
def test_runner_names_and_restores_damaged_object(applied: Router, word: str) -> None:
    applied.ash("-c", DAMAGES[word])
    said = applied.nftpolicy("check", check=False)
    assert said.returncode == 1
    (named,) = said.stderr.splitlines()[1:]
    assert named.startswith(word)
    applied.nftpolicy("reconcile")
    assert right(applied)


def test_runner_detects_rule_before_guard(applied: Router) -> None:
    applied.ash("-c", "nft insert rule inet nftpolicy guard accept")
    assert "guard: differs from the policy" in applied.nftpolicy("check", check=False).stderr
    applied.nftpolicy("reconcile")
    assert right(applied)


def test_runner_second_apply_changes_nothing(applied: Router) -> None:
    log = applied.space.outside("/run/monitor")
    with log.open("w") as said:
        monitor = applied.space.popen(["nft", "monitor"], stdout=said)
    wait_until(lambda: subscribed(applied.space, *NFTABLES), 5, "the monitor")
    applied.nftpolicy("apply")
    # Notifications come in order, so that with this one all of the command above have come.
    applied.ash("-c", "nft add table inet canary; nft delete table inet canary")
    wait_until(lambda: "delete table inet canary" in log.read_text(), 5, "the control: the last notification")
    monitor.kill()
    assert "nftpolicy" not in log.read_text()


def test_runner_ignores_elements_that_packets_add(router: Router) -> None:
    """The next reconcile would load the guard again, and its counters would begin at 0."""
    text = GLUON.read_text().replace('["ssh", "ping"]', '["ssh", "ping", "udp/69"]')
    policy = load(text.encode())[0]
    router.write(policy)
    router.nftpolicy("apply")
    values = {"ipv4_addr": "192.0.2.9", "ipv6_addr": "2001:db8::9", "inet_service": "69"}
    sets = [each for table in compile_policy(policy).tables for each in table.sets if "dynamic" in each.flags]
    for each in sets:
        element = " . ".join(values[part] for part in each.type)
        router.ash("-c", f"nft add element inet nftpolicy {each.name} '{{ {element} }}'")
    assert len(sets) == 8
    assert right(router)


def test_runner_ip_rule_repair_keeps_counters(applied: Router) -> None:
    """A repair of ip rules does not load the guard again; a new guard counts from 0."""

    def bump() -> None:  # a packet to a device that the policy does not name
        applied.ash("-c", "ping -c 1 -W 1 -I eth1 198.51.100.1 || true")

    def counted() -> str:
        return applied.nftpolicy("status", check=False).stdout

    applied.space.ip(
        "addr replace 198.51.100.2/24 dev eth1", "neigh replace 198.51.100.1 lladdr 02:00:00:00:00:09 dev eth1"
    )
    bump()
    assert "inet unnamed-device: 1" in counted()
    applied.ash("-c", "ip rule del priority 515")
    applied.nftpolicy("reconcile")
    assert "inet unnamed-device: 1" in counted()
    applied.ash("-c", f"nft -f {ROOT}/{tree.GUARD_PATH}")  # as fw4 does at each reload
    assert "unnamed-device" not in counted()


def test_runner_accepts_rules_made_by_netifd(applied: Router) -> None:
    """netifd deletes all rules when it starts, and adds those of UCI again, which have no protocol."""
    applied.space.ip("rule flush", "rule add priority 32766 lookup main", "rule add priority 510 fwmark 1/1 lookup 1")
    applied.space.ip("rule add priority 515 fwmark 1/1 unreachable")
    applied.space.ip("rule add priority 40000 unreachable")
    applied.nftpolicy("reconcile")  # adds the rules that older versions of netifd would misread
    assert right(applied)
    rules = applied.space.run(["ip", "-4", "rule"]).stdout.splitlines()
    assert {line.partition(":")[0] for line in rules if "proto 78" in line} == {"870", "33000"}
    applied.ash("-c", "ip rule del priority 40000")
    applied.nftpolicy("reconcile")
    assert "40000:\tfrom all unreachable proto 78" in applied.space.run(["ip", "rule"]).stdout


def test_runner_without_egress_hook_guards_ip_layer(router: Router) -> None:
    """The IP layer is guarded all the same, and the missing coverage is reported."""
    router.nftpolicy("release")
    router.state("link.taken").unlink()
    try:
        router.program("nft", _without_egress())
        router.write(gluon())
        router.nftpolicy("apply")
        said = router.nftpolicy("status").stdout
        assert "no netdev egress hook" in said
        assert "in force" in said
        found = router.space.call(held, [])
        assert [table.key for table in found.tables] == [("inet", "nftpolicy")]
    finally:
        router.real("nft")
        router.nftpolicy("release")


def _without_egress() -> str:
    """Return an nft that refuses text with the word egress, from a file or a pipe."""
    return f"""case " $* " in
*" -f - "*)
	text=$(cat)
	case $text in *"hook egress"*) exit 1 ;; esac
	echo "$text" | {NFT} "$@"
	;;
*) exec {NFT} "$@" ;;
esac"""


def test_runner_guards_bridge_ports_as_apply_does() -> None:
    with Namespace("bridge") as space:
        router = Router(space, gluon())
        router.nftpolicy("apply")  # before there is a device
        space.ip(
            "link add br-wan type bridge", "link add port0 type veth peer name peer0", "link set port0 master br-wan"
        )
        assert not right(router)
        router.nftpolicy("reconcile")
        assert "chain device-port0" in space.run(["nft", "list", "ruleset"]).stdout
        assert space.call(left_to_do, gluon()) == []
        space.ip("link del br-wan", "link del port0", "link add br-wan type veth peer name other")
        router.nftpolicy("reconcile")
        assert "port0" not in space.run(["nft", "list", "ruleset"]).stdout
        assert right(router)


def test_runner_without_link_guard_reports_not_compiled(router: Router) -> None:
    router.write(gluon(), link_guard=False)
    router.nftpolicy("apply")
    assert "link guard: not compiled" in router.nftpolicy("status").stdout
    router.nftpolicy("release")
    router.write(gluon())


def test_runner_refused_guard_is_replaced_by_block(router: Router) -> None:
    """fw4 must not fail either: a file that cannot be loaded is removed from the directory that fw4 reads."""
    router.write(gluon())
    whole = router.file(tree.GUARD_PATH).read_text()
    router.file(tree.GUARD_PATH).write_text(whole.replace("type gid", "type nonsense"))
    done = router.nftpolicy("apply", check=False)
    assert done.returncode == 1
    assert "all packets to the uplinks are dropped" in done.stderr
    listed = router.space.run(["nft", "list", "table", "inet", "nftpolicy"]).stdout
    assert "chain block" in listed
    assert not router.file(tree.GUARD_PATH).exists()
    assert "blocked" in router.nftpolicy("status", check=False).stdout
    router.write(gluon())  # mended
    router.nftpolicy("apply")
    assert right(router)
    router.nftpolicy("release")


@pytest.mark.parametrize(
    ("prepare", "words", "status", "said"),
    [
        ("", ("nonsense",), 2, "usage"),
        ("", (), 2, "usage"),
        ("", ("apply", "twice"), 2, "usage"),
        (f"mv {ROOT}/{tree.PLAN_PATH} {ROOT}/gone", ("apply",), 4, "compile the policy again"),
    ],
)
def test_runner_invalid_arguments_are_refused(
    router: Router, prepare: str, words: tuple[str, ...], status: int, said: str
) -> None:
    before = router.space.call(held, [])
    router.ash("-c", prepare or "true")
    try:
        done = router.ash(f"{ROOT}/{tree.RUNNER_PATH}", *words, check=False)
    finally:
        router.ash("-c", f"[ ! -e {ROOT}/gone ] || mv {ROOT}/gone {ROOT}/{tree.PLAN_PATH}")
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert router.space.call(held, []) == before


def test_runner_without_root_changes_nothing(router: Router) -> None:
    done = router.nftpolicy("apply", check=False, uid=65534)
    assert done.returncode in (1, 4)
    assert done.stderr.startswith("nftpolicy: ")
    assert len(done.stderr.splitlines()) == 1


def test_runner_without_iproute2_names_package(router: Router) -> None:
    router.program("ip", 'exec busybox ip "$@"')
    try:
        done = router.nftpolicy("apply", check=False)
    finally:
        router.real("ip")
    assert done.returncode == 4
    assert "ip-tiny" in done.stderr


def test_runner_with_full_state_directory_still_guards(router: Router) -> None:
    router.write(gluon())
    router.nftpolicy("release")
    router.ash(
        "-c", f"mkdir -p {STATE}; mount -t tmpfs -o size=8k none {STATE}; cat /dev/zero >{STATE}/ballast || true"
    )
    try:
        done = router.nftpolicy("apply", check=False)
        assert [line for line in done.stderr.splitlines() if "guard" in line] == []
        assert "chain guard" in router.space.run(["nft", "list", "table", "inet", "nftpolicy"]).stdout
        assert "sysctl" in router.nftpolicy("check", check=False).stderr, "values from before could not be kept"
    finally:
        router.nftpolicy("release", check=False)
        router.ash("-c", f"umount {STATE}")
    router.nftpolicy("apply")
    assert right(router)


def test_runner_concurrent_applies_run_in_turn(router: Router) -> None:
    router.write(gluon())
    many = [router.start("apply") for _ in range(3)]
    assert [one.wait(limit(60)) for one in many] == [0, 0, 0]
    assert right(router)
    assert not router.state("lock").is_symlink()
    router.nftpolicy("release")


def test_runner_lock_of_ended_process_is_ignored(router: Router) -> None:
    router.ash("-c", f"mkdir -p {STATE}; ln -s 4194303 {STATE}/lock")
    router.nftpolicy("apply")
    assert right(router)
    router.nftpolicy("release")


def test_runner_lock_of_another_user_is_ignored(router: Router) -> None:
    """After a kill, another user can have a process with the number in the lock, and with any words."""
    words = [str(tool("sleep")), "60"]
    stranger = router.space.popen(["nftpolicy", words[1]], uid=65534, executable=words[0])
    number = Path(f"/proc/{stranger.pid}/status").read_text().partition("NSpid:")[2].split("\n")[0].split()[-1]
    assert b"nftpolicy" in Path(f"/proc/{stranger.pid}/cmdline").read_bytes()
    router.ash("-c", f"mkdir -p {STATE}; ln -s {number} {STATE}/lock")
    router.nftpolicy("apply")
    assert right(router)
    router.nftpolicy("release")
