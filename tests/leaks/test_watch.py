"""E6-E9, E12: foreign damage under `nftpolicy watch` and a flood: it is repaired, and the exposure is counted."""

import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from nftpolicy.runtime.file_lock import exclusive_lock
from nftpolicy.runtime.shadow_guard_state import EARLIER_SHADOW_GUARD
from tests.exposure_lab import DAMAGES, WATCH, Watched, hurt
from tests.guarded_lab import ENVIRONMENT, POLICY, SERVICE_GID, STATE, Guarded, gluon, guarded_lab, wan_routes_in_main
from tests.lab import addresses as at
from tests.lab.limits import limit
from tests.lab.netns import wait_until
from tests.leaks.test_race_windows import FLOOD, flooding

pytestmark = pytest.mark.slow

ROUNDS = 3
EVENTS = 10_000


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    """Node with the WAN's routes in main too, so that every packet that is not stopped leaves by it."""
    with guarded_lab() as found:
        wan_routes_in_main(found.lab)
        yield found


@pytest.fixture
def watched(made: Guarded) -> Iterator[Watched]:
    made.apply()
    with Watched(made, "--leave-routes") as found:  # the WAN's routes stay in main, the worst place for them
        yield found
        found.wait_until_right()


def seen(made: Guarded, seconds: float = 0.3) -> int:
    made.lab.wan.drain()
    time.sleep(seconds)
    return sum(FLOOD in frame.payload for frame in made.lab.wan.frames())


@pytest.mark.parametrize("name", DAMAGES)
def test_watch_restores_damaged_object(made: Guarded, watched: Watched, name: str) -> None:
    exposures = []
    with flooding(made.lab):
        for _ in range(ROUNDS):
            exposures.append(hurt(watched, name, FLOOD))
        assert seen(made) == 0, "the flood goes on, and nothing of it leaves"
    print(name, exposures)
    assert all(one.ms < 1000 for one in exposures)
    if not DAMAGES[name][1] or owns_tables(made):
        assert [one.leaked for one in exposures] == [0] * ROUNDS, "where a guard stands, nothing leaves"
    if name.startswith("nft") or name == "a rule before the guard's":
        assert {one.by for one in exposures} == {"nft"}


def owns_tables(made: Guarded) -> bool:
    """Return True if the kernel knows tables with an owner (Linux 5.12), and so a shadow guard exists."""
    return made.lab.node.run(["nft", "-c", "table inet owned { flags owner; }"], check=False).returncode == 0


@pytest.mark.parametrize("command", ["delete table", "flush table"])
@pytest.mark.parametrize("family", ["inet", "netdev"])
def test_shadow_guard_refuses_change_by_other_process(
    made: Guarded, watched: Watched, command: str, family: str
) -> None:
    if not owns_tables(made):
        pytest.skip("this kernel knows no tables with an owner")
    refused = made.lab.node.run(["nft", *command.split(), family, "nftpolicy-second"], check=False)
    assert "Operation not permitted" in refused.stderr


def test_guard_counts_drops_beside_shadow_guard(made: Guarded, watched: Watched) -> None:
    """Packets that both would drop are in the counters that `status` shows."""
    before = made.counters()["inet/wan.dropped"]
    with flooding(made.lab):
        wait_until(lambda: made.counters()["inet/wan.dropped"] > before + 100, 20, "the counter")
    if owns_tables(made):
        assert made.counters("nftpolicy-second")["inet/wan.dropped"] == 0


def test_shadow_guard_ends_with_watch(made: Guarded) -> None:
    """So `release` opens the uplink even if the watch was killed."""
    made.apply()
    with Watched(made, "--leave-routes") as one:
        assert ("nftpolicy-second" in made.lab.node.run(["nft", "list", "tables"]).stdout) == owns_tables(made)
        assert one.process is not None
        one.process.kill()
        one.process.wait()
    assert "nftpolicy-second" not in made.lab.node.run(["nft", "list", "tables"]).stdout


def test_shadow_guard_precedes_the_lock(made: Guarded) -> None:
    made.apply()
    if not owns_tables(made):
        pytest.skip("this kernel knows no tables with an owner")
    (lock,) = made.lab.node.outside(STATE).glob("netns-*/lock")
    with exclusive_lock(lock, 0):
        process = made.lab.node.popen([*WATCH, "--leave-routes"], env=ENVIRONMENT)
        wait_until(
            lambda: "nftpolicy-second" in made.lab.node.run(["nft", "list", "tables"]).stdout, 20, "the shadow guard"
        )
        with flooding(made.lab):
            made.lab.node.run(["nft", "flush", "ruleset"])
            assert seen(made, 1) == 0
        assert "table inet nftpolicy\n" not in made.lab.node.run(["nft", "list", "tables"]).stdout
    wait_until(lambda: made.nftpolicy("status", check=False).returncode == 0, 20, "the guard after the lock")
    process.terminate()
    assert process.wait(limit(20)) == 0


def test_stopped_watch_with_earlier_shadow_guard_is_named(made: Guarded) -> None:
    """The shadow guard of a watch that takes nothing over drops the new mark: neither apply nor status is content."""
    if not owns_tables(made):
        pytest.skip("this kernel knows no tables with an owner")
    made.apply()
    text = made.lab.node.outside(POLICY).read_text()
    try:
        with Watched(made, "--leave-routes") as one:
            assert one.process is not None
            assert json.loads(made.nftpolicy("status", "--json").stdout)["leaks"] == 0
            made.lab.node.outside(POLICY).write_text(text.replace('"0x1/0x1"', '"0x2/0x2"'))
            with stopped(one.process):
                assert EARLIER_SHADOW_GUARD in made.nftpolicy("apply", POLICY).stderr
                assert not may_send(made, 2), "the shadow guard drops the service's packets"
                status = made.nftpolicy("status", "--json", check=False)
            found = json.loads(status.stdout)
            assert (status.returncode, found["verdict"], found["leaks"]) == (1, "held", None)
            assert [part for part, good in found["parts"].items() if not good] == ["shadow guard"]
            assert found["watch"]["verdict"] == "", "the last proof is about the policy before"
            one.wait_until_right()
            assert may_send(made, 2)
            one.wait_for("proof", 2)
            assert json.loads(made.nftpolicy("status", "--json").stdout)["leaks"] == 0
            made.lab.node.outside(POLICY).write_text(text)
            assert made.nftpolicy("apply", POLICY).stderr == "", "a watch that runs takes the policy over"
            assert made.nftpolicy("status").returncode == 0
    finally:
        made.lab.node.outside(POLICY).write_text(text)
        made.apply()


@contextlib.contextmanager
def stopped(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def may_send(made: Guarded, mark: int) -> bool:
    """Send a packet of the service with a mark to a server behind the uplink; return False if a guard drops it."""
    try:
        made.lab.node.call(send_marked, mark, gid=SERVICE_GID, keep_caps=True)
    except PermissionError:  # sendto's result of a packet that postrouting drops
        return False
    return True


def send_marked(mark: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        one.sendto(b"service", (at.SERVER[4], 9))


def test_control_without_watch_damage_leaks(made: Guarded) -> None:
    """The control of the test above."""
    made.apply()
    with flooding(made.lab):
        made.lab.node.run(["nft", "flush", "ruleset"])
        made.lab.wan.drain()
        wait_until(lambda: sum(FLOOD in frame.payload for frame in made.lab.wan.frames()) > 100, 5, "the flood")
    assert made.nftpolicy("status", check=False).returncode == 1
    made.apply()


def test_watch_follows_flapping_and_renamed_links(made: Guarded, watched: Watched) -> None:
    node = made.lab.node
    with flooding(made.lab):
        for words in (
            [f"link set {at.WAN} down"],
            [f"link set {at.WAN} up"],
            [f"link set {at.WAN} down", f"link set {at.WAN} name other0", "link set other0 up"],
            ["link set other0 down", f"link set other0 name {at.WAN}", f"link set {at.WAN} up"],
            ["link add usb9 type veth peer name usb9-far", "link set usb9 up"],
            ["link del usb9"],
            [f"addr add 192.0.2.77/24 dev {at.WAN}", f"addr del 192.0.2.77/24 dev {at.WAN}"],
        ):
            made.lab.wan.drain()
            node.ip(*words)
            watched.wait_until_right()
            assert seen(made) == 0, words
    made.lab.wan_up()
    wan_routes_in_main(made.lab)


def test_watch_blocks_until_foreign_table_is_removed(made: Guarded, watched: Watched) -> None:
    node = made.lab.node
    with flooding(made.lab):
        node.nft(
            "table inet other {\nchain out {\ntype filter hook postrouting priority 15000\n"
            "meta mark set 0x1\n}\n}\n"
            "table inet early {\nchain out {\ntype route hook output priority -160\nmeta mark set 0x1\n}\n}\n"
        )
        try:
            watched.wait_for("blocked")
            assert "nftpolicy-block" in node.run(["nft", "list", "tables"]).stdout
            assert seen(made) == 0
        finally:
            node.nft("delete table inet other\ndelete table inet early\n")
        watched.wait_for("unblocked")
        wait_until(
            lambda: "nftpolicy-block" not in node.run(["nft", "list", "tables"]).stdout, 5, "the end of the block"
        )


def test_watch_follows_new_policy_and_release(made: Guarded, watched: Watched) -> None:
    other = made.file.read_text().replace("table   = 1", "table   = 9")
    made.file.write_text(other)
    assert "applied" in made.apply()
    made.lab.node.run(["nft", "flush", "ruleset"])
    watched.wait_until_right()
    made.release()
    time.sleep(0.5)
    assert "nftpolicy" not in made.lab.node.run(["nft", "list", "tables"]).stdout
    made.file.write_text(gluon(made.lab))
    made.apply()
    made.lab.node.run(["nft", "flush", "ruleset"])
    watched.wait_until_right()


def test_watch_after_ten_thousand_events_keeps_no_memory(made: Guarded, watched: Watched) -> None:
    node = made.lab.node

    def storm(count: int) -> None:
        node.nft("table inet storm {\nset s {\ntype ipv4_addr\n}\n}\n")
        lines = [f"add element inet storm s {{ 10.0.{number >> 8 & 255}.{number & 255} }}" for number in range(count)]
        node.nft("\n".join(lines) + "\n")
        node.ip(
            *(f"route add unreachable 198.18.{number >> 8}.{number & 255}/32 table 77" for number in range(count // 10))
        )
        node.ip("route flush table 77")
        node.nft("delete table inet storm\n")

    storm(EVENTS // 5)
    time.sleep(1)
    before = watched.resources()
    for _ in range(5):
        storm(EVENTS // 5)
    watched.wait_until_right()
    time.sleep(1)
    after = watched.resources()
    print(before, after)
    assert after.memory < before.memory + 8192  # KiB
    # A check that runs at this moment has files open, too.
    wait_until(lambda: watched.resources().files <= before.files, 20, "as many open files as before")


def used(watched: Watched, seconds: float) -> tuple[float, int]:
    """Return the seconds of CPU and the context switches of the watch within some time."""
    before = watched.resources()
    time.sleep(seconds)
    after = watched.resources()
    return after.cpu - before.cpu, after.switches - before.switches


def test_watch_without_events_is_idle(watched: Watched) -> None:
    wait_until(lambda: not used(watched, 0.5)[0], 10, "the end of its start")
    cpu, switches = used(watched, 2)
    assert cpu <= 0.03
    assert switches < 20


def test_watch_reports_ready_and_ends_at_sigterm(made: Guarded) -> None:
    made.apply()
    with Watched(made) as one:
        lines = one.lines
    assert one.process is not None
    assert one.process.returncode == 0
    assert json.loads(json.dumps(lines[0]))["event"] in ("start", "held", "adopted", "ready")


def test_watch_with_policy_file_applies_policy(made: Guarded) -> None:
    made.release()
    with Watched(made, POLICY) as one:
        one.wait_until_right()
    made.apply()
