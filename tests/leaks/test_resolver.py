"""The resolver of the WAN: it reports why it cannot run, and it follows the lease."""

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guarded_lab import (
    POLICY,
    SERVICE_GID,
    STATE,
    Guarded,
    gluon,
    guarded_lab,
    needs_readers,
    watching,
)
from tests.lab import addresses as at
from tests.lab.limits import limit
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab() -> Iterator[Guarded]:
    """The policy in force, and no resolver."""
    with guarded_lab() as made:
        yield made


@pytest.fixture(scope="module")
def serving() -> Iterator[Guarded]:
    """The policy in force and its resolver running, for tests that leave it running."""
    with guarded_lab(resolver=True) as made:
        yield made


@pytest.fixture
def running(serving: Guarded) -> Iterator[Guarded]:
    """The same; each test begins with the home's own servers."""
    wait_until(lambda: ask(serving) == [at.WHO_AT_HOME[4]], 5, "an answer of the home")
    lease = serving.lab.lease()
    yield serving
    write_lease(serving, lease)


def ask(made: Guarded, family: int = 4, tcp: bool = False) -> list[str] | str:
    return made.lab.resolve(at.WHO, family, "127.0.0.1", tcp, gid=SERVICE_GID, seconds=0.5)


def write_lease(made: Guarded, text: str) -> None:
    """Replace the lease by a new file, as a DHCP client does."""
    new = made.lab.node.outside(f"{made.lab.wan_lease}.new")
    new.write_text(text)
    new.replace(made.lab.node.outside(made.lab.wan_lease))


def refused(made: Guarded, uid: int | None = None) -> tuple[int, str]:
    done = made.nftpolicy("resolver", POLICY, check=False, uid=uid)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


# Refusals


def test_resolver_without_applied_policy_is_refused() -> None:
    with Lab() as lab:
        made = Guarded(lab, gluon(lab))
        status, said = refused(made)
        assert (status, "not in force" in said, "nftpolicy apply" in said) == (5, True, True), said
        made.apply()
        lab.node.ip("rule del priority 510")
        status, said = refused(made)
        assert (status, "not in force" in said) == (5, True), said
        made.apply()
        lab.node.nft("add rule inet nftpolicy wan.guard accept")
        status, said = refused(made)
        assert (status, "not in force" in said) == (5, True), said


def test_resolver_without_root_is_refused(lab: Guarded) -> None:
    needs_readers()
    status, said = refused(lab, uid=65534)
    assert (status, "root" in said) == (4, True), said


def test_resolver_without_dnsmasq_is_refused(lab: Guarded) -> None:
    program = lab.lab.node.run(["sh", "-c", "command -v dnsmasq"]).stdout.strip()
    lab.lab.node.run(["mount", "--bind", "/dev/null", program])
    try:
        status, said = refused(lab)
    finally:
        lab.lab.node.run(["umount", program])
    assert (status, "dnsmasq is missing" in said) == (4, True), said


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_resolver_with_port_in_use_is_refused(lab: Guarded, address: str, kind: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.lab.node.socket(family, kind) as taken:
        taken.bind((address, 54))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        status, said = refused(lab)
    assert (status, "dnsmasq ended" in said, "in use" in said) == (5, True, True), said
    assert leftovers(lab) == []


def test_resolver_with_user_without_name_is_refused(lab: Guarded) -> None:
    lab.file.write_text(gluon(lab.lab).replace("[uplink.wan.resolver]", "[uplink.wan.resolver]\nuser = 61234"))
    try:
        lab.apply()
        status, said = refused(lab)
        assert (status, "61234" in said) == (5, True), said
    finally:
        lab.file.write_text(gluon(lab.lab))
        lab.apply()
    assert leftovers(lab) == []


def dnsmasqs() -> list[int]:
    """Return the process ids of the resolver's dnsmasq. Runs inside the node."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"--servers-file=" in process.read_bytes():
                found.append(int(process.parent.name))
    return found


def leftovers(made: Guarded) -> list[str]:
    """Return processes, files and cgroups that the resolver left behind."""
    (state,) = made.lab.node.outside(STATE).iterdir()
    folders = [str(path) for path in made.lab.node.outside(f"{STATE}-resolver").glob("*-wan")]
    cgroups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{state.name}-wan")]
    return [f"process {pid}" for pid in made.lab.node.call(dnsmasqs)] + folders + cgroups


# Work


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_resolver_queries_leave_marked(running: Guarded, tcp: bool) -> None:
    running.lab.wan.drain(), running.lab.mesh_sniffer.drain()
    with watching(running.lab) as watch:
        for family in (4, 6):
            assert ask(running, family, tcp) == [at.WHO_AT_HOME[family]]
        assert (watch.unmarked, watch.stray) == (0, 0)
    own = {running.lab.wan_address(family) for family in (4, 6)}
    asked = [frame for frame in running.lab.wan.frames() if frame.dport == 53]
    assert {frame.saddr for frame in asked} <= own
    assert asked
    assert [frame for frame in running.lab.mesh_sniffer.frames() if frame.dport == 53] == []


def test_resolver_after_sigterm_leaves_nothing(lab: Guarded) -> None:
    lab.start_resolver()
    assert ask(lab) == [at.WHO_AT_HOME[4]]
    assert leftovers(lab) != [], "inconclusive"
    assert lab.stop_resolver() == 0
    assert leftovers(lab) == []
    assert ask(lab) == "ECONNREFUSED"


def test_resolver_follows_new_lease(running: Guarded) -> None:
    assert ask(running) == [at.WHO_AT_HOME[4]]
    other = running.lab.neighbour.popen(  # another server in the home's network
        ["dnsmasq", "--conf-file=/dev/null", "-k", "--pid-file", "--user=root", "--no-resolv", "--no-hosts",
         f"--host-record={at.WHO},192.0.2.222", "--bind-interfaces", f"--listen-address={at.NEIGHBOUR[4]}"]
    )  # fmt: skip
    write_lease(running, f"nameserver {at.NEIGHBOUR[4]}\n")
    wait_until(lambda: ask(running) == ["192.0.2.222"], 5, "the new server")
    write_lease(running, f"# from DHCP\nnameserver {at.HOME[6]}\n")
    wait_until(lambda: ask(running) == [at.WHO_AT_HOME[4]], 5, "the old server, by IPv6")
    other.kill()


def test_resolver_queries_link_local_server_by_wan(running: Guarded) -> None:
    write_lease(running, f"nameserver {at.NEIGHBOUR[4]}\n")  # no server answers there, or another one
    wait_until(lambda: ask(running) != [at.WHO_AT_HOME[4]], 5, "the end of the old server")
    write_lease(running, f"nameserver {at.HOME_LINK_LOCAL}\n")
    with watching(running.lab) as watch:
        wait_until(lambda: ask(running) == [at.WHO_AT_HOME[4]], 5, "the link-local server")
        assert watch.unmarked == 0


def test_resolver_without_server_answers_refused(running: Guarded) -> None:
    before = running.resolver_log().count("none yet")
    write_lease(running, "")
    wait_until(lambda: ask(running) == "refused", 5, "a refusal")
    assert ask(running, 6, tcp=True) == "refused"
    running.lab.node.outside(running.lab.wan_lease).unlink()
    assert [ask(running) for _ in range(20)] == ["refused"] * 20  # no server of before, nor of the machine's own
    assert running.resolver_log().count("none yet") == before + 1
    write_lease(running, f"nameserver {at.HOME[4]}\n")
    wait_until(lambda: ask(running) == [at.WHO_AT_HOME[4]], 5, "the server's return")


def test_resolver_without_lease_starts_and_waits(lab: Guarded) -> None:
    lease = lab.lab.lease()
    lab.lab.node.outside(lab.lab.wan_lease).unlink()
    try:
        lab.start_resolver()
        assert ask(lab) == "refused"
        write_lease(lab, lease)
        wait_until(lambda: ask(lab) == [at.WHO_AT_HOME[4]], 5, "the lease")
    finally:
        lab.stop_resolver()
        write_lease(lab, lease)


def test_resolver_skips_and_reports_invalid_lease_entries(running: Guarded) -> None:
    own = at.NODE_MESH[4]
    words = ("127.0.0.1", "::1", own, "no.address", at.HOME[4])
    write_lease(running, "".join(f"nameserver {word}\n" for word in words))
    wait_until(lambda: "'no.address'" in running.resolver_log(), 5, "the word")
    assert ask(running) == [at.WHO_AT_HOME[4]]
    write_lease(running, f"nameserver {own}\nnameserver no.address\n")  # the machine's own resolver is no server
    wait_until(lambda: ask(running) == "refused", 5, "a refusal")
    log = running.resolver_log()
    assert [log.count(f"{word!r} left out: ") for word in words] == [1, 1, 1, 1, 0]
    assert f"'{own}' left out: address of this host" in log


def test_resolver_drops_capabilities_of_its_start(running: Guarded) -> None:
    assert running._resolver is not None
    status = Path(f"/proc/{running._resolver.pid}/status").read_text()
    sets = {name: int(value, 16) for name, value in re.findall(r"^Cap(\w+):\t(\w+)$", status, re.MULTILINE)}
    kept = 1 << 2 | 1 << 5 | 1 << 12 | 1 << 13
    assert (sets["Eff"], sets["Prm"], sets["Inh"], sets["Bnd"]) == (kept, kept, 0, kept)
    assert ask(running) == [at.WHO_AT_HOME[4]]


def test_resolver_log_of_endless_lease_is_bounded(running: Guarded) -> None:
    """Each entry that is left out was a line of the log, again at each reading."""
    before = running.resolver_log().count("\n")
    entries = "".join(f"nameserver 10.{index >> 8}.{index & 255}.53\n" for index in range(20_000))
    write_lease(running, f"{entries}nameserver wrong\n")
    wait_until(lambda: "entries left out" in running.resolver_log(), 10, "the end of the list")
    write_lease(running, f"nameserver {at.HOME[4]}\n")
    wait_until(lambda: ask(running) == [at.WHO_AT_HOME[4]], 10, "the next lease, which is followed")
    assert running.resolver_log().count("\n") - before < 200


def test_resolver_second_instance_is_refused(running: Guarded) -> None:
    status, said = refused(running)
    assert status != 0
    assert re.search("in use|runs already", said), said
    assert ask(running) == [at.WHO_AT_HOME[4]]
    write_lease(running, "")
    wait_until(lambda: ask(running) == "refused", 5, "the first one's next lease")


def test_resolver_restarts_after_kill(lab: Guarded) -> None:
    lab.start_resolver()
    assert lab._resolver is not None
    lab._resolver.send_signal(signal.SIGKILL)
    lab._resolver.wait(limit(5))
    try:
        lab.start_resolver()
        assert ask(lab) == [at.WHO_AT_HOME[4]]
        write_lease(lab, "")
        wait_until(lambda: ask(lab) == "refused", 5, "the new one's lease")
    finally:
        lab.stop_resolver()
        lab.lab.wan_up()
    assert leftovers(lab) == []


def killed_resolver(lab: Guarded) -> None:
    assert lab._resolver is not None
    lab._resolver.send_signal(signal.SIGKILL)
    lab._resolver.wait(limit(5))


def test_resolver_killed_leaves_no_process(lab: Guarded) -> None:
    """dnsmasq changes its user, and the kernel no longer kills it with its parent."""
    lab.start_resolver()
    lab.lab.resolve(at.WHO, 4, "127.0.0.1", gid=SERVICE_GID)
    (child,) = lab.lab.node.call(dnsmasqs)
    assert lab.lab.node.call(os.getpgid, child) == child, "a group of its own"
    killed_resolver(lab)
    wait_until(lambda: lab.lab.node.call(dnsmasqs) == [], 5, "the end of dnsmasq")
    lab.stop_resolver()


def test_release_ends_dnsmasq_of_killed_resolver(lab: Guarded) -> None:
    """Both the resolver and the process that would end its dnsmasq were killed."""
    lab.start_resolver()
    lab.lab.node.call(kill_siblings_of_dnsmasq)
    killed_resolver(lab)
    try:
        time.sleep(0.2)
        assert lab.lab.node.call(dnsmasqs), "the control: dnsmasq is an orphan"
        assert "left" in lab.release()
        assert leftovers(lab) == []
    finally:
        lab.apply()
        lab.stop_resolver()


def kill_siblings_of_dnsmasq() -> None:
    """Kill the processes that watch over dnsmasq. Runs inside the node."""
    (dnsmasq,) = dnsmasqs()
    parents = {int(path.parent.name): path.read_text() for path in Path("/proc").glob("[0-9]*/status")}
    parents = {pid: int(re.findall(r"^PPid:\t(\d+)$", text, re.MULTILINE)[0]) for pid, text in parents.items()}
    siblings = [pid for pid, parent in parents.items() if parent == parents[dnsmasq] and pid != dnsmasq]
    assert siblings
    for pid in siblings:
        os.kill(pid, signal.SIGKILL)


def test_resolver_reports_end_of_dnsmasq(lab: Guarded) -> None:
    lab.start_resolver()
    assert lab._resolver is not None
    (child,) = lab.lab.node.call(dnsmasqs)
    lab.lab.node.call(os.kill, child, signal.SIGKILL)
    assert lab._resolver.wait(limit(5)) == 5
    assert "dnsmasq ended" in lab.resolver_log()
    lab.stop_resolver()
    assert leftovers(lab) == []


def test_resolver_without_ipv6_serves_ipv4(lab: Guarded) -> None:
    """A machine without IPv6 has no ::1; the service still gets names by 127.0.0.1."""
    lab.lab.node.sysctl("net/ipv6/conf/lo/disable_ipv6", 1)
    try:
        lab.start_resolver()
        assert lab.lab.resolve(at.WHO, 4, "127.0.0.1", gid=SERVICE_GID) == [at.WHO_AT_HOME[4]]
        assert "cannot listen on ::1" in lab.resolver_log()
        lab.stop_resolver()
    finally:
        lab.lab.node.sysctl("net/ipv6/conf/lo/disable_ipv6", 0)
