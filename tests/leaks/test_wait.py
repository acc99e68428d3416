"""`nftpolicy wait`: an uplink is ready if it can really be used; otherwise the missing part is reported."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guarded_lab import (
    ENVIRONMENT,
    POLICY,
    PROGRAM,
    SERVICE_GID,
    Guarded,
    gluon,
    guarded_lab,
    needs_readers,
)
from tests.lab import addresses as at
from tests.lab.limits import limit
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

pytestmark = pytest.mark.slow

SAID = "/run/lab/wait.err"


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    """The policy in force, its resolver running, and no VPN."""
    with guarded_lab(resolver=True) as found:
        yield found


def now(made: Guarded, *words: str) -> tuple[int, str]:
    """Run one check; return the exit status, and the missing part."""
    done = made.nftpolicy("wait", "--timeout", "0", *words, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""
    return done.returncode, done.stderr


@contextlib.contextmanager
def waiting(made: Guarded, *words: str) -> Iterator["subprocess.Popen[Any]"]:
    """Start a wait that is not ready after some checks."""
    command = [PROGRAM, "wait", "--timeout", "30", *words]
    with made.lab.node.outside(SAID).open("w") as said:
        process = made.lab.node.popen(command, env=ENVIRONMENT, stderr=said)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.2)
        yield process
    finally:
        process.kill()
        process.wait()


# Uplinks


def test_wait_usable_uplink_is_ready(made: Guarded) -> None:
    assert now(made) == now(made, "--uplink", "wan", POLICY) == (0, "")


def test_wait_for_link_address_and_route(made: Guarded) -> None:
    made.lab.wan_down()
    try:
        assert now(made) == (1, "nftpolicy: uplink wan: br-wan is down\n")
        with waiting(made) as process:
            made.lab.node.ip(f"link set {at.WAN} up")
            wait_until(lambda: "table 1 has no default route" in now(made)[1], 5, "a link without routes")
            assert process.poll() is None
            made.lab.wan_up()
            assert process.wait(limit(10)) == 0
    finally:
        made.lab.wan_up()
    assert now(made)[0] == 0


def test_wait_for_carrier(made: Guarded) -> None:
    made.lab.home.ip("link set lan-node down")
    try:
        wait_until(lambda: now(made)[1].startswith("nftpolicy: uplink wan: br-wan has no carrier\n"), 5, "its loss")
        with waiting(made) as process:
            made.lab.home.ip("link set lan-node up")
            made.lab.wan_up()
            assert process.wait(limit(10)) == 0
    finally:
        made.lab.home.ip("link set lan-node up")
        made.lab.wan_up()


def test_wait_requires_one_family(made: Guarded) -> None:
    made.lab.node.ip(f"route del default dev {at.WAN} table 1")
    try:
        assert now(made) == (0, "")
        made.lab.node.ip(f"-6 route del default dev {at.WAN} table 1")
        status, said = now(made)
        assert (status, "table 1 has no default route of IPv4 or IPv6 by br-wan" in said) == (1, True), said
    finally:
        made.lab.wan_up()


def test_wait_for_policy(made: Guarded) -> None:
    made.release()
    try:
        status, said = now(made, POLICY)
        assert (status, "gluon-fastd is not in force" in said) == (1, True), said
        status, said = now(made)
        assert (status, "no policy was applied here" in said) == (2, True), said
        with waiting(made, POLICY) as process:
            made.apply()
            assert process.wait(limit(10)) == 0
    finally:
        made.apply()
    made.lab.node.ip("rule del priority 510")
    try:
        assert "not in force" in now(made)[1]
    finally:
        made.apply()


def test_wait_for_resolver_and_servers(made: Guarded) -> None:
    made.stop_resolver()
    try:
        status, said = now(made)
        assert (status, "does not answer on 127.0.0.1:54 and [::1]:54" in said) == (1, True), said
        with waiting(made) as process:
            made.start_resolver()
            assert process.wait(limit(10)) == 0
    finally:
        made.stop_resolver()
        made.start_resolver()
    lease = made.lab.lease()
    made.lab.node.outside(made.lab.wan_lease).write_text("# nothing\n")
    try:
        status, said = now(made)
        assert (status, "knows no server yet" in said) == (1, True), said
    finally:
        made.lab.node.outside(made.lab.wan_lease).write_text(lease)


# Services


def kill_fastd() -> None:
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text() == "fastd\n":
                os.kill(int(comm.parent.name), signal.SIGKILL)


def end_fastd(made: Guarded) -> None:
    made.lab.node.call(kill_fastd)
    wait_until(lambda: "has no IP socket" in now(made, "--service", "fastd")[1], 5, "the end of fastd")


def test_wait_for_answer_to_vpn(made: Guarded) -> None:
    assert "fastd: it has no IP socket yet" in now(made, "--service", "fastd")[1]
    try:
        with waiting(made, "--service", "fastd") as process:
            made.lab.start_fastd_client(SERVICE_GID)
            made.lab.wait_for_fastd()
            assert process.wait(limit(10)) == 0
        assert now(made, "--service", "fastd") == (0, "")
    finally:
        end_fastd(made)


def test_wait_unanswered_vpn_is_not_ready(made: Guarded) -> None:
    made.lab.start_fastd_client(SERVICE_GID, remote="203.0.113.77")
    try:
        wait_until(lambda: "no reply has reached" in now(made, "--service", "fastd")[1], 5, "sockets of fastd")
        assert now(made, "--service", "fastd")[0] == 1
    finally:
        end_fastd(made)


def test_wait_names_vpn_without_mark(made: Guarded) -> None:
    made.lab.start_fastd_client(SERVICE_GID, mark=0)
    try:
        wait_until(lambda: "has the mark 0x1/0x1" in now(made, "--service", "fastd")[1], 5, "sockets of fastd")
        assert made.lab.wait_for_fastd(), "the control: it is connected, by the mesh"
        assert now(made, "--service", "fastd")[0] == 1
    finally:
        end_fastd(made)


def kernel(lab: Lab) -> str:
    text = gluon(lab).replace("[service.fastd]", '[service.tunnel]\nuplink = "wan"\nkernel = true\n\n[service.fastd]')
    return re.sub(r"^inside( *)= \[", r'inside\1= ["vx0", ', text, flags=re.MULTILINE)


def test_wait_for_answer_to_kernel_tunnel() -> None:
    """A VXLAN device stands for WireGuard: sockets of the kernel, and packets that carry the mark."""
    with guarded_lab(kernel) as made:
        lab = made.lab
        ends = (
            (lab.node, at.SERVER[4], lab.wan_address(4), "10.9.9.1"),
            (lab.server, lab.wan_address(4), at.SERVER[4], "10.9.9.2"),
        )
        for space, remote, local, inner in ends:
            space.ip(
                f"link add vx0 type vxlan id 9 remote {remote} local {local} dstport 4789 srcport 4789 4790 udpcsum",
                f"addr add {inner}/24 dev vx0",
            )
        lab.node.nft(
            "table inet marks {\nchain c {\ntype route hook output priority -200\nudp dport 4789 meta mark set 1\n}\n}\n"
        )
        lab.node.ip("link set vx0 up")
        assert "has" in now(made, "--service", "tunnel")[1]
        lab.node.run(["busybox", "ping", "-c", "1", "-W", "1", "10.9.9.2"], check=False)
        assert lab.wan.wait_for(lambda frame: frame.dport == 4789, 2), "inconclusive: nothing was sent"
        assert "no reply has reached" in now(made, "--service", "tunnel")[1]
        with waiting(made, "--service", "tunnel") as process:
            lab.server.ip("link set vx0 up")
            for _ in range(3):
                lab.node.run(["busybox", "ping", "-c", "1", "-W", "1", "10.9.9.2"], check=False)
            assert process.wait(limit(10)) == 0


# What is asked wrongly, and the end


def test_wait_unknown_names_are_refused(made: Guarded) -> None:
    for words, said in (
        (("--uplink", "wam"), "there is no uplink 'wam' (did you mean 'wan'?); known are wan"),
        (("--service", "fast"), "there is no service 'fast' (did you mean 'fastd'?); known are fastd"),
        (("--uplink", "wan", "--service", "fastd"), "give one of them"),
        (("/nonexistent.toml",), "cannot be read"),
    ):
        status, output = now(made, *words)
        assert (status, said in output) == (2, True), output
    assert made.nftpolicy("wait", "--timeout", "-1", check=False).returncode == 2


def test_wait_without_root_is_refused(made: Guarded) -> None:
    needs_readers()
    done = made.nftpolicy("wait", POLICY, check=False, uid=65534)
    assert (done.returncode, "root" in done.stderr) == (4, True), done.stderr


def test_wait_ends_at_interrupt(made: Guarded) -> None:
    with waiting(made, "--service", "fastd") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(limit(5)) == 130
        assert "Traceback" not in made.lab.node.outside(SAID).read_text()


def test_wait_ends_at_timeout(made: Guarded) -> None:
    done = made.nftpolicy("wait", "--service", "fastd", "--timeout", "0.5", check=False)
    assert (done.returncode, "has no IP socket" in done.stderr) == (1, True)
