"""C-B: marks that are lost, forged, passed on or overwritten. The owner of a packet in nft is the opener of its socket.

B1 and B2 (a program that cannot mark), B4 and B5 (cgroups) are also in tests/kernel/test_socket_marking.py and
test_cgroup_facts.py; B9 is in test_stale_cleanup.py, B13 in test_kernel_packets.py, B15 in
tests/kernel/test_reply_mark_facts.py, B16 in tests/unit/test_policy_errors.py.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guarded_lab import OTHER_GID, SERVICE_GID, Guarded, guarded_lab, run_probes, watching
from tests.lab import addresses as at
from tests.lab import inbound_clients, leak_probes, syscalls
from tests.lab.netns import Namespace

DOMAIN = {4: socket.AF_INET, 6: socket.AF_INET6}
MARK, PORT = 1, 9
CLONE_NEWUSER = 0x10000000
families = pytest.mark.parametrize("family", at.FAMILIES, ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def made() -> Iterator[Guarded]:
    with guarded_lab() as found:
        yield found


def udp(family: int, mark: int = 0) -> socket.socket:
    found = socket.socket(DOMAIN[family], socket.SOCK_DGRAM)
    if mark:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    return found


def say(one: socket.socket, family: int, word: bytes) -> None:
    """Send to the server. The error of a drop is ignored; the error of an earlier packet comes first."""
    one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    with contextlib.suppress(PermissionError):
        one.sendto(word, (at.SERVER[family], PORT))


Script = Callable[[int, Callable[[str, socket.socket], None]], None]


def said(family: int, script: Script) -> None:
    """Run a script inside the node, as root without the service's group; its sockets send its words."""
    kept = []

    def word(name: str, one: socket.socket) -> None:
        kept.append(one)
        say(one, family, f"<{name}>".encode())

    script(family, word)


def dropped(made: Guarded) -> int:
    """Return the number of marked packets that the guard dropped: of no mark owner, or from another device's address."""
    counters = made.counters()
    return counters["inet/wan.unentitled"] + counters["inet/wan.foreign-source"]


def ways(made: Guarded, family: int, script: Script, names: str, gid: int = OTHER_GID) -> dict[str, str]:
    """Return the device by which each word left ("wan", "mesh", or ""); checks that the guard counted the drops."""
    made.lab.wan.drain(), made.lab.mesh_sniffer.drain()
    before = dropped(made)
    made.lab.node.call(said, family, script, uid=0, gid=gid, groups=[])
    made.lab.wan.wait_for(lambda _: False, 0.3)
    found = {}
    for name in names.split():
        where = [
            device
            for device, sniffer in (("wan", made.lab.wan), ("mesh", made.lab.mesh_sniffer))
            if any(f"<{name}>".encode() in frame.payload for frame in sniffer.frames())
        ]
        assert len(where) < 2
        found[name] = "".join(where)
    stopped = [name for name, where in found.items() if not where]
    assert dropped(made) - before == len(stopped)
    return found


def gave(work: Callable[[], list[socket.socket]], prepare: Callable[[int], None] | None = None) -> list[socket.socket]:
    """Return the sockets that another process opens and passes on (SCM_RIGHTS). `prepare` gets its process id."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            opened = work_after(theirs, work)
            socket.send_fds(theirs, [b"here"], [one.fileno() for one in opened])
        os._exit(0)
    theirs.close()
    with ours:
        if prepare:
            assert ours.recv(9) == b"wait"
            prepare(child)
            ours.send(b"go")
        message, found, _, _ = socket.recv_fds(ours, 9, 9)
    os.waitpid(child, 0)
    assert message == b"here", "the other process failed"
    return [socket.socket(fileno=one) for one in found]


def work_after(channel: socket.socket, work: Callable[..., list[socket.socket]]) -> list[socket.socket]:
    return work(channel) if work.__code__.co_argcount else work()


# B3: a socket is passed on


def passed_on(family: int, word: Callable[[str, socket.socket], None]) -> None:
    def service() -> list[socket.socket]:
        os.setgid(SERVICE_GID)
        return [udp(family, MARK), udp(family)]

    marked, plain = gave(service)
    word("marked-by-the-service", marked)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    word("marked-by-who-got-it", plain)
    word("of-an-outsider", udp(family, MARK))


def passed_in(family: int, word: Callable[[str, socket.socket], None]) -> None:
    """Pass a socket to the service that an outsider opened."""

    def outsider() -> list[socket.socket]:
        os.setgid(OTHER_GID)
        return [udp(family, MARK)]

    (got,) = gave(outsider)
    word("opened-by-an-outsider", got)
    word("of-the-service", udp(family, MARK))


@families
def test_B3_passed_socket_keeps_owner(made: Guarded, family: int) -> None:
    names = "marked-by-the-service marked-by-who-got-it of-an-outsider"
    assert ways(made, family, passed_on, names) == {
        "marked-by-the-service": "wan",
        "marked-by-who-got-it": "wan",
        "of-an-outsider": "",
    }
    names = "opened-by-an-outsider of-the-service"
    found = ways(made, family, passed_in, names, gid=SERVICE_GID)
    assert found == {"opened-by-an-outsider": "", "of-the-service": "wan"}


# B6: forged marks


def changed_group(family: int, word: Callable[[str, socket.socket], None]) -> None:
    early = udp(family, MARK)
    os.setegid(SERVICE_GID)
    word("opened-before", early)
    late = udp(family, MARK)
    word("opened-as-the-service", late)
    os.setegid(OTHER_GID)
    word("opened-as-the-service-and-kept", late)
    word("opened-after", udp(family, MARK))


@families
def test_B6_socket_keeps_group_of_its_opening(made: Guarded, family: int) -> None:
    names = "opened-before opened-as-the-service opened-as-the-service-and-kept opened-after"
    assert ways(made, family, changed_group, names) == {
        "opened-before": "",
        "opened-as-the-service": "wan",
        "opened-as-the-service-and-kept": "wan",
        "opened-after": "",
    }


def given_away(family: int, word: Callable[[str, socket.socket], None]) -> None:
    os.setgroups([SERVICE_GID])
    word("of-the-group-beside", udp(family, MARK))
    os.setgroups([])
    one = udp(family, MARK)
    os.fchown(one.fileno(), SERVICE_GID, SERVICE_GID)
    assert os.fstat(one.fileno()).st_gid == SERVICE_GID
    word("given-to-the-service", one)


@families
def test_B6_supplementary_group_and_fchown_do_not_entitle(made: Guarded, family: int) -> None:
    names = "of-the-group-beside given-to-the-service"
    assert ways(made, family, given_away, names) == dict.fromkeys(names.split(), "")


@families
@pytest.mark.parametrize("kind", ["udp", "udp-connected", "tcp", "raw-protocol", "raw-header", "ping-raw"])
def test_B6_root_without_group_cannot_use_mark(made: Guarded, kind: str, family: int) -> None:
    probe = leak_probes.Probe(kind, family, marked=True)
    before = made.counters()["inet/wan.unentitled"]
    (unentitled,) = leak_probes.send_all(made.lab, [probe], gid=OTHER_GID, uid=0)
    (entitled,) = leak_probes.send_all(made.lab, [probe], gid=SERVICE_GID, uid=0)
    assert leak_probes.sightings(made.lab.wan, [unentitled, entitled], 0.3) == {entitled}
    assert not leak_probes.seen(made.lab.mesh_sniffer, unentitled)
    assert made.counters()["inet/wan.unentitled"] > before


# B2, A17: marks that come late, go, or do not come at all


def without_the_right(family: int, word: Callable[[str, socket.socket], None]) -> None:
    os.setgid(SERVICE_GID), os.setuid(65534)
    one = udp(family)
    with pytest.raises(PermissionError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    word("with-ignored-error", one)


@families
def test_B2_program_refused_SO_MARK_leaves_by_mesh(made: Guarded, family: int) -> None:
    assert ways(made, family, without_the_right, "with-ignored-error") == {"with-ignored-error": "mesh"}


def after_connect(family: int, word: Callable[[str, socket.socket], None]) -> None:
    os.setegid(SERVICE_GID)
    one = udp(family)
    one.connect((at.SERVER[family], PORT))
    word("before", one)
    time.sleep(0.1)  # the server reports a closed port
    one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    word("marked-since", one)
    time.sleep(0.1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0)
    word("no-longer", one)
    os.setegid(OTHER_GID)
    two = udp(family)
    two.connect((at.SERVER[family], PORT))
    two.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    word("of-an-outsider", two)


@families
def test_A17_mark_applies_from_next_packet(made: Guarded, family: int) -> None:
    """A connected socket is routed again when its mark changes; its source address stays, so the packet is dropped."""
    names = "before marked-since no-longer of-an-outsider"
    assert ways(made, family, after_connect, names) == {
        "before": "mesh",
        "marked-since": "",
        "no-longer": "mesh",
        "of-an-outsider": "",
    }


# B14: user namespaces


def in_a_user_namespace(outside: int) -> Callable[[socket.socket], list[socket.socket]]:
    """Run a process with the service's group in its user namespace, which is group `outside` on the machine."""

    def work(channel: socket.socket) -> list[socket.socket]:
        syscalls.unshare(CLONE_NEWUSER)
        channel.send(b"wait")
        channel.recv(9)
        os.setgid(SERVICE_GID)
        found = [udp(4), udp(6)]
        for one in found:
            with contextlib.suppress(PermissionError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
                raise AssertionError("the mark needs a right in the namespace that owns the network")
        return found

    def prepare(pid: int) -> None:
        Path(f"/proc/{pid}/setgroups").write_text("deny")
        Path(f"/proc/{pid}/uid_map").write_text("0 0 1")
        Path(f"/proc/{pid}/gid_map").write_text(f"{SERVICE_GID} {outside} 1")

    work.prepare = prepare  # type: ignore[attr-defined]
    return work


def mapped(family: int, word: Callable[[str, socket.socket], None]) -> None:
    for name, outside in (("of-another-group", OTHER_GID), ("of-the-group", SERVICE_GID)):
        work = in_a_user_namespace(outside)
        for one in gave(work, work.prepare):  # type: ignore[attr-defined,arg-type]
            if one.family == DOMAIN[family]:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
                word(name, one)


@families
def test_B14_group_in_user_namespace_is_mapped(made: Guarded, family: int) -> None:
    found = ways(made, family, mapped, "of-another-group of-the-group")
    assert found == {"of-another-group": "", "of-the-group": "wan"}


# B7, B11, B12: marks of others


def hooked(kind: str, hook: str, priority: int, rule: str) -> str:
    return f"chain c{hook} {{\ntype {kind} hook {hook} priority {priority}\n{rule}\n}}\n"


FOREIGN = {
    "wg-quick": hooked("filter", "prerouting", -150, "meta l4proto udp meta mark set ct mark")
    + hooked("filter", "postrouting", -150, "meta l4proto udp meta mark 51820 ct mark set meta mark"),
    "a restore without a mask": hooked("route", "output", -140, "ct mark != 0 meta mark set ct mark"),
}


@contextlib.contextmanager
def foreign(node: Namespace, chains: str) -> Iterator[None]:
    node.nft(f"table inet foreign {{\n{chains}\n}}\n")
    try:
        yield
    finally:
        node.nft("delete table inet foreign\n")


@pytest.mark.parametrize("name", FOREIGN)
def test_B7_foreign_ct_mark_copy_does_not_entitle(made: Guarded, name: str) -> None:
    with foreign(made.lab.node, FOREIGN[name]), watching(made.lab) as watch:
        run = run_probes(made.lab)
        assert (watch.unmarked, watch.stray) == (0, 0)
        left = {sent for sent in run.sents if sent.probe.marked}
        assert run.wan == left, "what is marked still leaves, and nothing else"
        assert run.unexplained() == []


@families
@pytest.mark.parametrize("priority", [-160, -140], ids=["before ours", "behind ours"])
def test_B12_foreign_mark_on_mesh_packet_does_not_leak(made: Guarded, family: int, priority: int) -> None:
    """The kernel reflects the mark in its reply. Before our chain, our chain clears it; after it, the guard sees
    an address of the mesh.
    """
    made.lab.wan.drain()
    before = dropped(made)

    def knock() -> bytes | str:
        return made.lab.mesh.call(inbound_clients.udp, at.NODE_MESH[family], 8081, b"knock", 0.3)

    assert knock() == "ECONNREFUSED", "inconclusive"
    rule = f'iifname "{at.MESH}" meta mark set {MARK}'
    with foreign(made.lab.node, hooked("filter", "prerouting", priority, rule)):
        answer = knock()
    if priority == -160:
        assert answer == "ECONNREFUSED"
    else:
        assert answer != "ECONNREFUSED"
        assert dropped(made) > before
    assert [frame for frame in made.lab.wan.frames() if b"knock" in frame.payload] == []


@families
def test_B11_mark_of_client_is_not_kept_by_node(made: Guarded, family: int) -> None:
    """A client of the node marks its packets; the mark stays on the client."""
    made.lab.wan.drain()
    made.lab.client.call(say_marked, family)
    assert made.lab.mesh_sniffer.wait_for(lambda frame: b"<of the client>" in frame.payload, 2), "inconclusive"
    assert [frame for frame in made.lab.wan.frames() if b"<of the client>" in frame.payload] == []


def say_marked(family: int) -> None:
    with udp(family, MARK) as one:
        say(one, family, b"<of the client>")
