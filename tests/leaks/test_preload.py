"""B1, B2: a program that libpacketmark cannot mark reports an error, and none of its packets leaves."""

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nftpolicy.kernel.process_sockets import read_process_sockets
from nftpolicy.runtime.services import preload
from tests.c_helpers import CLIENT, FOUR, build, public_folder
from tests.guarded_lab import (
    OTHER_GID,
    SERVICE_GID,
    Guarded,
    gluon,
    guarded_lab,
    no_wan_routes_in_main,
    wan_routes_in_main,
)
from tests.lab import addresses as at
from tests.lab import syslog_listener
from tests.lab.limits import limit
from tests.lab.netns import wait_until
from tests.lab.topology import Lab

NOPERM = 77
USER = 61234  # of a service that is known by its user
PORT = 5353  # of the dnsmasq that is the service
GROUP = "gluon-mesh-vpn"


def policy(lab: Lab) -> str:
    """Return the shipped policy; the library marks its service, which queries the home's servers itself."""
    text = re.sub(r"\n\[uplink.wan.resolver\]\n(.+\n)*", "\n", gluon(lab))
    text, count = re.subn(r'^marks\s*= "itself".*$', 'marks = "preload"', text, flags=re.MULTILINE)
    assert (count, "resolver]" in text) == (1, False)
    return f'{text}\n[service.other]\nuplink = "wan"\nuser = {USER}\nmarks = "preload"\n'


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with guarded_lab(policy) as found:
        yield found


@pytest.fixture(scope="module")
def log(made: Guarded) -> Callable[[], str]:
    return syslog_listener.listen(made.lab.node)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    if not preload.LIBRARY.exists():
        pytest.skip("libpacketmark.so is not built, since there was no C compiler (python hatch_build.py)")
    with public_folder() as found:
        shutil.copy(preload.LIBRARY, found)
        yield found


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {"LD_PRELOAD": f"{folder}/libpacketmark.so", "LIBPACKETMARK_MARK": "0x1/0x1", **more}


@contextlib.contextmanager
def dnsmasq(made: Guarded, user: str, env: dict[str, str]) -> Iterator["subprocess.Popen[Any]"]:
    """Start the service: a dnsmasq that queries the home's server."""
    words = [
        *("dnsmasq", "--conf-file=/dev/null", "--keep-in-foreground", "--pid-file", "--no-hosts", "--cache-size=0"),
        *(f"--user={user}", f"--group={GROUP}", f"--port={PORT}", "--bind-interfaces", "--listen-address=127.0.0.1"),
        *("--no-resolv", f"--server={at.HOME[4]}", "--log-facility=/run/lab/service.log"),
    ]
    process = made.lab.node.popen(words, gid=SERVICE_GID, env=env)
    try:
        wait_until(lambda: made.lab.node.run(["ss", "-Hlnu", f"sport = {PORT}"]).stdout, 5, "dnsmasq")
        yield process
    finally:
        process.kill()
        process.wait()


def ask(made: Guarded) -> list[str] | str:
    return made.lab.resolve(at.WHO, 4, "127.0.0.1", gid=OTHER_GID, port=PORT, seconds=0.5)


def questions(sniffer: Any) -> list[Any]:
    return [frame for frame in sniffer.frames() if frame.dport == 53]


def test_dnsmasq_with_library_is_marked_and_uses_wan(made: Guarded, folder: Path) -> None:
    made.lab.wan.drain(), made.lab.mesh_sniffer.drain()
    with dnsmasq(made, "root", environment(folder)) as process:
        assert ask(made) == [at.WHO_AT_HOME[4]]
        seen = read_process_sockets(process.pid).sockets
        assert seen
        assert [one for one in seen if one.mark != 1] == []
        assert {one.gid for one in seen} == {SERVICE_GID}
    asked = questions(made.lab.wan)
    assert {frame.saddr for frame in asked} == {made.lab.wan_address(4)}
    assert questions(made.lab.mesh_sniffer) == []
    with dnsmasq(made, "root", {}) as process:  # the control: without the library it cannot
        assert ask(made) != [at.WHO_AT_HOME[4]]
        assert {one.mark for one in read_process_sockets(process.pid).sockets} == {0}


def test_dnsmasq_without_capability_ends_and_leaks_nothing(made: Guarded, folder: Path, log: Callable[[], str]) -> None:
    """Its standard error is /dev/null by then: its exit status and the system log remain."""
    made.lab.wan.drain(), made.lab.mesh_sniffer.drain()
    with dnsmasq(made, "nobody", environment(folder)) as process:
        assert log() == "", "it starts, since root opens its first sockets"
        assert ask(made) != [at.WHO_AT_HOME[4]]
        assert process.wait(limit(5)) == NOPERM
    wait_until(lambda: "libpacketmark: dnsmasq: the kernel does not let it mark its sockets" in log(), 5, "the log")
    assert "CAP_NET_RAW" in log()
    assert questions(made.lab.wan) == questions(made.lab.mesh_sniffer) == []


def test_control_optional_mode_queries_by_mesh(made: Guarded, folder: Path, log: Callable[[], str]) -> None:
    """Control of the test above: the same program in optional mode queries without the mark, by the mesh."""
    made.lab.wan.drain(), made.lab.mesh_sniffer.drain()
    with dnsmasq(made, "nobody", environment(folder, LIBPACKETMARK_OPTIONAL="1")) as process:
        ask(made)
        assert process.poll() is None
        assert made.lab.mesh_sniffer.wait_for(lambda frame: frame.dport == 53, 2), "inconclusive"
        wait_until(lambda: log().count("goes on without the mark") == 1, 5, "the log")
    assert questions(made.lab.wan) == []


def static(folder: Path) -> Path:
    return build(folder, CLIENT, "-static", name="static")


def raw_call(folder: Path) -> Path:
    return build(folder, CLIENT, "-DRAW", name="raw")


def setuid(folder: Path) -> Path:
    program = build(folder, CLIENT, name="setuid")
    program.chmod(0o4755)
    return program


@pytest.mark.parametrize("make", [static, raw_call, setuid], ids=lambda make: make.__name__)
def test_program_out_of_reach_of_library_is_dropped(made: Guarded, folder: Path, make: Any) -> None:
    """The main table leads to the WAN, and the program has the service's group."""
    program = make(folder)
    words = f"by {make.__name__} {time.monotonic_ns()}"

    def leaves(program: Path, uid: int) -> bool:
        arguments = [str(program), at.NEIGHBOUR[4], at.NEIGHBOUR[6], words]
        made.lab.node.run(arguments, uid=uid, gid=SERVICE_GID, groups=[], env=environment(folder))
        return bool(made.lab.wan.wait_for(lambda frame: words.encode() in frame.payload, 0.5))

    wan_routes_in_main(made.lab)
    try:
        before = made.counters()["inet/wan.dropped"]
        made.lab.wan.drain()
        assert not leaves(program, 65534)
        assert made.counters()["inet/wan.dropped"] >= before + 2, "it is dropped, and that is counted"
        assert leaves(build(folder, CLIENT), 0), "inconclusive: what is marked does not leave either"
        made.lab.wan.drain()
        with made.off():
            assert leaves(program, 65534), "inconclusive: it would not leave without the guard"
    finally:
        no_wan_routes_in_main(made.lab)


# By `nftpolicy run`


@pytest.mark.parametrize("service", ["fastd", "other"])
def test_run_preloads_library(made: Guarded, folder: Path, service: str) -> None:
    program = build(folder, CLIENT)
    words = f"by run {service} {time.monotonic_ns()}"
    arguments = [str(program), at.SERVER[4], at.SERVER[6], words]
    if service == "other" and (why := preload.refusal_reason(program, USER)):
        pytest.skip(f"the checkout is where others cannot read it: {why}")
    made.lab.wan.drain()
    assert made.nftpolicy("run", service, "--", *arguments).stdout.split() == ["1"] * FOUR
    assert made.lab.wan.wait_for(lambda frame: words.encode() in frame.payload, 2)
    said = made.nftpolicy("run", service, "--check", check=False).stderr
    assert "not tried: mark: set by the preloaded library in the program" in said


def test_run_refuses_program_out_of_reach_of_library(made: Guarded, folder: Path) -> None:
    for make, why in ((static, "linked statically"), (setuid, "setuid")):
        done = made.nftpolicy("run", "fastd", "--", str(make(folder)), check=False)
        assert (done.returncode, done.stdout, why in done.stderr) == (5, "", True), done.stderr
