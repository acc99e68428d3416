"""The guard and fw4 in one kernel: reloads, restarts and stops in any order, with and without a flood."""

import itertools
import time
from collections.abc import Iterator

import pytest

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.integration.openwrt import tree
from nftpolicy.netstate.nft import Table
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from nftpolicy.policy.objects import Policy
from tests.guarded_lab import gluon, wan_routes_in_main
from tests.lab.limits import limit
from tests.lab.netns import wait_until
from tests.lab.topology import Lab, missing
from tests.leaks.test_race_windows import FLOOD, flooding
from tests.unit.forked_namespace import kernel, linux, normal, observe

from .fw4_stand_in import RENDERED, Fw4
from .router import Router, right, wait_for_monitors

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("able")]

RELOADS = {"default-router": 20, "gluon-node": 100}


def policy_of(lab: Lab) -> Policy:
    return load(gluon(lab).encode())[0]


def guards(tables: tuple[Table, ...]) -> tuple[Table, ...]:
    return normal(NetState(tuple(one for one in tables if one.key == ("inet", "nftpolicy")))).tables


def held() -> tuple[Table, ...]:
    return guards(observe(linux()).tables)


@pytest.fixture(scope="module")
def shipped() -> Policy:
    from tests.guarded_lab import GLUON

    return load(GLUON.read_bytes())[0]


@pytest.fixture(scope="module")
def router(shipped: Policy) -> Iterator[Router]:
    with kernel() as space:
        yield Router(space, shipped)


@pytest.mark.parametrize("name", RENDERED)
def test_fw4_reloads_keep_guard(router: Router, shipped: Policy, name: str) -> None:
    router.write(shipped)
    fw4 = Fw4(router, name)
    wanted = guards(compile_policy(shipped).tables)
    for _ in range(RELOADS[name]):
        fw4.reload()
    assert router.space.call(held) == wanted
    fw4.restart()
    assert router.space.call(held) == wanted
    router.nftpolicy("apply")
    assert router.space.call(held) == wanted
    router.nftpolicy("release")
    fw4.reload()
    assert router.space.call(held) == (), "what was released came back with a reload"
    router.nftpolicy("apply")
    router.nftpolicy("release")


def test_control_include_without_delete_duplicates_rules(router: Router, shipped: Policy) -> None:
    """The control: without the delete, rules are there twice after the second reload."""
    router.write(shipped)
    fw4, file = Fw4(router, RENDERED[0]), router.file(tree.GUARD_PATH)
    plain = "".join(line for line in file.read_text().splitlines(keepends=True) if not line.startswith("delete table"))
    file.write_text(plain)
    router.space.nft("flush ruleset\n")
    fw4.reload(), fw4.reload()
    assert router.space.call(held) != guards(compile_policy(shipped).tables)
    router.space.nft("flush ruleset\n")
    router.write(shipped)


def test_fw4_reload_replaces_guard_of_other_policy(router: Router, shipped: Policy) -> None:
    """Chains, priorities and types of sets may change: with `flush table` the whole of fw4 would be refused."""
    fw4 = Fw4(router, RENDERED[0])
    old = router.file(tree.GUARD_PATH).read_text()
    other = old.replace("priority 10000", "priority 9000").replace("type gid", "type uid").replace("skgid", "skuid")
    router.file(tree.GUARD_PATH).write_text(other)
    fw4.reload()
    router.write(shipped)
    fw4.reload()
    assert router.space.call(held) == guards(compile_policy(shipped).tables)
    router.space.nft("flush ruleset\n")


def test_fw4_invalid_include_keeps_guard_and_is_reported(router: Router, shipped: Policy) -> None:
    """Exit status of fw4 is 0 then, so the runner queries the kernel and not fw4."""
    router.write(shipped)
    router.nftpolicy("apply")
    router.file(tree.GUARD_PATH).write_text(
        router.file(tree.GUARD_PATH).read_text().replace("type gid", "type nonsense")
    )
    assert router.space.nft(Fw4(router, RENDERED[0]).whole(), check=False).returncode != 0
    assert router.space.call(held) == guards(compile_policy(shipped).tables)
    assert "guard: differs from the policy" in router.nftpolicy("check", check=False).stderr
    router.write(shipped)
    assert right(router)
    router.nftpolicy("release")


# With a flood

needs_lab = pytest.mark.skipif(bool(missing()), reason=f"a lab needs {', '.join(missing())}")


@pytest.fixture(scope="module")
def field() -> Iterator[tuple[Lab, Router]]:
    """Lab without nftpolicy of this machine: its node is the router, and the WAN's routes are in main too."""
    with Lab(groups={"gluon-mesh-vpn": 800}) as lab:
        wan_routes_in_main(lab)
        router = Router(lab.node, policy_of(lab))
        router.nftpolicy("apply")
        yield lab, router


def leaked(lab: Lab) -> int:
    assert lab.wan.dropped == 0, "inconclusive: the sniffer lost frames"
    return sum(FLOOD in frame.payload for frame in lab.wan.frames())


def settled(lab: Lab) -> None:
    """Wait until packets that were under way have arrived."""
    lab.wan.wait_for(lambda _: False, 0.05)
    lab.wan.drain()


@needs_lab
@pytest.mark.parametrize("name", RENDERED)
def test_fw4_restarts_and_stops_leak_nothing(field: tuple[Lab, Router], name: str) -> None:
    lab, router = field
    # Without the link layer, which would hide a gap in the guard.
    router.write(policy_of(lab), link_guard=False)
    router.nftpolicy("apply")
    fw4 = Fw4(router, name)
    with flooding(lab):
        settled(lab)
        for order in itertools.permutations((fw4.reload, fw4.restart, fw4.stop)):
            for step in order:
                step()
        router.nftpolicy("reconcile")
        assert leaked(lab) == 0
        router.nftpolicy("release")
        fw4.stop()
        assert lab.wan.wait_for(lambda frame: FLOOD in frame.payload, 2), "inconclusive: there was no flood"
        router.nftpolicy("apply")


@needs_lab
def test_watch_after_fw4_flush_restores_guard(field: tuple[Lab, Router], capsys: pytest.CaptureFixture[str]) -> None:
    """Every order of reload, restart, stop and flush. Packets that leave between a flush and the guard are counted."""
    lab, router = field
    router.write(policy_of(lab))
    router.nftpolicy("apply")
    fw4 = Fw4(router, RENDERED[1])
    exposures: list[tuple[float, int]] = []
    watch = router.start("watch")
    wait_for_monitors(lab.node)

    def flush() -> None:
        lab.wan.drain()
        begin = time.monotonic()
        fw4.flush()
        wait_until(lambda: "policy drop" in _guard(lab), 10, "the guard")
        elapsed = time.monotonic() - begin
        settled_in = lab.wan.wait_for(lambda _: False, 0.05)
        assert settled_in is None
        exposures.append((elapsed * 1000, leaked(lab)))
        lab.wan.drain()

    steps = (fw4.reload, fw4.restart, fw4.stop, flush)
    with flooding(lab):
        settled(lab)
        for order in list(itertools.permutations(steps))[::4]:
            for step in order:
                step()
            assert leaked(lab) == 0
        wait_until(lambda: right(router), 20, "all as wanted")
        assert leaked(lab) == 0
    watch.terminate()
    assert watch.wait(limit(10)) == 143
    with capsys.disabled():
        times, counts = sorted(one for one, _ in exposures), sorted(count for _, count in exposures)
        print(f"\nafter `fw4 flush`: guard back in {times[0]:.0f} to {times[-1]:.0f} ms (median {times[len(times) // 2]:.0f}),"
              f" {counts[0]} to {counts[-1]} packets of the flood left (median {counts[len(counts) // 2]})")  # fmt: skip


def _guard(lab: Lab) -> str:
    return lab.node.run(["nft", "list", "table", "inet", "nftpolicy"], check=False).stdout


@needs_lab
def test_watch_after_netifd_start_restores_ip_rules(field: tuple[Lab, Router]) -> None:
    """A start of netifd deletes all ip rules of both families. The guard stands meanwhile, so nothing leaves."""
    lab, router = field
    router.nftpolicy("apply")
    watch = router.start("watch")
    wait_for_monitors(lab.node)
    with flooding(lab):
        settled(lab)
        for family in ("-4", "-6"):
            lab.node.run(["ip", family, "rule", "flush"])
            lab.node.ip(f"{family} rule add priority 32766 lookup main")
        wait_until(lambda: right(router), 20, "the ip rules")
        assert leaked(lab) == 0
    watch.terminate()
    watch.wait(limit(10))
    wait_until(lambda: not _monitors(lab), 5, "the end of the monitors")


def _monitors(lab: Lab) -> str:
    listing = "for one in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$one; echo; done"
    said = lab.node.run(["sh", "-c", listing], check=False).stdout
    return "\n".join(line for line in said.splitlines() if line.startswith(("nft monitor", "ip -N monitor")))
