"""`nftpolicy probe`: its verdict on machines that hold, that leak, and that it cannot judge."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.guarded_lab import POLICY, Guarded, guarded_lab, wan_routes_in_main
from tests.lab import addresses as at

pytestmark = pytest.mark.slow

HELD, LEAKS, BAD_INPUT, INCONCLUSIVE, NOT_HERE = 0, 1, 2, 3, 4
BY_HAND = ("--uplink", f"wan={at.WAN}", "--mark", "0x1/0x1")


@pytest.fixture
def made() -> Iterator[Guarded]:
    """Node with the WAN's routes in main too, so that every packet that is not stopped leaves by it."""
    with guarded_lab() as found:
        wan_routes_in_main(found.lab)
        yield found


def probe(made: Guarded, *words: str) -> tuple[int, dict[str, Any]]:
    done = made.nftpolicy("probe", "--json", *words, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def results(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [*found["routed"], *(one for device in found["devices"] for one in device["probes"])]


def leaking(found: dict[str, Any]) -> set[str]:
    return {one["title"] for one in results(found) if one["result"] == "leaked"}


def kinds(found: dict[str, Any]) -> set[str]:
    return {one["title"] for one in results(found)}


def everything(made: Guarded) -> str:
    """Rules and routes without their counters."""
    node = made.lab.node
    said = [node.run(["nft", "-s", "list", "ruleset"]).stdout]
    said += [node.run(["ip", f"-{family}", *words]).stdout for family in (4, 6) for words in (["rule"], ["route", "show", "table", "all"])]  # fmt: skip
    return "".join(said)


def test_probe_separates_guarded_from_released_machine(made: Guarded) -> None:
    before = everything(made)
    status, found = probe(made)
    assert (status, found["verdict"], leaking(found)) == (HELD, "held", set())
    assert {one["result"] for one in results(found)} <= {"blocked", "stopped"}
    assert everything(made) == before
    made.release()
    status, leaky = probe(made, POLICY)
    assert (status, leaky["verdict"]) == (LEAKS, "leaks")
    assert leaking(leaky) == kinds(leaky) == kinds(found), "each kind can be seen to leak"
    said = made.nftpolicy("probe", POLICY, check=False).stdout
    assert said.startswith("LEAKS: gluon-fastd: ")
    assert "nftpolicy explain" in said


def test_probe_result_agrees_with_sniffer_at_home(made: Guarded) -> None:
    """The sniffer of the machine itself is behind the guard: it sees only packets that leave."""
    made.lab.wan.drain()
    probe(made)
    stopped = [frame for frame in made.lab.wan.frames() if frame.ethertype == 0x88B5]
    made.release()
    made.lab.wan.drain()
    probe(made, POLICY)
    left = [frame for frame in made.lab.wan.frames() if frame.ethertype == 0x88B5]
    assert (len(stopped), bool(left)) == (0, True)


def test_probe_without_link_guard_reports_frames_only(made: Guarded) -> None:
    made.lab.node.run(["nft", "delete", "table", "netdev", "nftpolicy"])
    status, found = probe(made)
    assert status == LEAKS
    assert leaking(found) == {one for one in kinds(found) if "AF_PACKET" in one} != set()


def test_probe_reports_accepted_protocol(made: Guarded) -> None:
    made.lab.node.nft("insert rule inet nftpolicy wan.guard meta nfproto ipv4 meta l4proto tcp accept\n")
    made.lab.node.run(["nft", "delete", "table", "netdev", "nftpolicy"])
    status, found = probe(made)
    ip = {one for one in leaking(found) if "AF_PACKET" not in one}
    assert (status, bool(ip)) == (LEAKS, True)
    assert all("TCP" in one for one in ip)


def test_probe_without_policy_takes_uplink_option(made: Guarded) -> None:
    assert probe(made, *BY_HAND)[0] == HELD
    made.release()
    assert probe(made, *BY_HAND)[0] == LEAKS


def test_probe_with_link_down_is_inconclusive(made: Guarded) -> None:
    made.lab.node.ip(f"link set {at.WAN} down")
    status, found = probe(made)
    assert (status, found["verdict"]) == (INCONCLUSIVE, "inconclusive")
    assert f"{at.WAN} is down" in json.dumps(found)


def test_probe_of_missing_device_is_inconclusive(made: Guarded) -> None:
    assert probe(made, "--uplink", "wan=lte9", "--mark", "0x1/0x1")[0] == INCONCLUSIVE


def test_probe_with_dropped_control_is_inconclusive(made: Guarded) -> None:
    """A machine that drops the control packets too gives no proof."""
    hook = f'type filter hook egress device "{at.WAN}" priority 30000'
    made.lab.node.nft(f"table netdev stop {{\nchain stopping {{\n{hook}\npolicy drop\n}}\n}}\n")
    assert probe(made)[0] == INCONCLUSIVE


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((POLICY, *BY_HAND), BAD_INPUT, "cannot be used with a policy"),
        (("--uplink", "wan"), BAD_INPUT, "NAME=DEVICE"),
    ],
)
def test_probe_invalid_options_are_refused(made: Guarded, words: tuple[str, ...], status: int, said: str) -> None:
    done: subprocess.CompletedProcess[str] = made.nftpolicy("probe", *words, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr


def test_probe_without_root_sends_nothing(made: Guarded) -> None:
    done = made.nftpolicy("probe", POLICY, check=False, uid=65534)
    assert (done.returncode, done.stdout) == (NOT_HERE, "")
