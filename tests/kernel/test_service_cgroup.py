"""Programs on a service's cgroup: the sockets that they mark and refuse, and their lifetime."""

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nftpolicy.kernel import cgroup as groups
from nftpolicy.kernel.bpf import programs, syscall
from nftpolicy.kernel.errors import Unavailable
from tests.lab import syscalls
from tests.lab.netns import Namespace

from . import bpf_programs
from .two_link_node import NOBODY, SENT, outcome

pytestmark = pytest.mark.kernel

VALUE, MASK, FOREIGN = 0x500, 0xFF00, 0x3
LONGEST = "device890123456"  # 15 characters, IFNAMSIZ - 1
DEVICES = ("lo", "br-wan", LONGEST)
_IP, _IPV6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
_INDEX, _UNICAST, _UNICAST6 = 62, 50, 76  # SO_BINDTOIFINDEX, IP_UNICAST_IF, IPV6_UNICAST_IF


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with bpf_programs.cgroup() as path:
        yield path


def marks_inside(path: Path, uid: int | None = NOBODY) -> set[int]:
    """Return the marks of sockets of both families and several kinds, opened in the cgroup."""
    bpf_programs.joined(path, lambda: None)
    raw = []
    if uid is None:
        raw = [(socket.AF_INET, socket.SOCK_RAW, 253), (socket.AF_INET6, socket.SOCK_RAW, 253)]
    else:
        os.setresuid(uid, uid, uid)
    kinds = [(family, kind, 0) for family in (socket.AF_INET, socket.AF_INET6) for kind in (1, 2)]
    found = set()
    for domain, kind, protocol in kinds + raw:
        with socket.socket(domain, kind, protocol) as one:
            found.add(one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
    return found


def numbers(path: Path, attach_type: syscall.AttachType = syscall.SOCK_CREATE) -> list[int]:
    """Return the numbers of all programs on a cgroup, foreign ones included."""
    folder = os.open(path, os.O_RDONLY)
    try:
        return [program.number for program in syscall.attached_programs(folder, attach_type)]
    finally:
        os.close(folder)


# --- marks --------------------------------------------------------------------------------


def test_cgroup_attach_marks_sockets_inside_only(node: Namespace, cgroup: Path) -> None:
    assert node.call(marks_inside, cgroup) == {0}, "the control: nothing marks them yet"
    assert node.call(groups.attach, cgroup.name, VALUE, MASK) is True
    assert node.call(marks_inside, cgroup) == {VALUE}, "an unprivileged process"
    assert node.call(marks_inside, cgroup, None) == {VALUE}, "root, raw sockets too"
    assert node.call(groups.own_socket_marks, socket.AF_INET) == {"SOCK_DGRAM": 0, "SOCK_STREAM": 0}, "outside"
    assert node.call(groups.detach, cgroup.name) is True
    assert node.call(marks_inside, cgroup) == {0}
    assert node.call(groups.detach, cgroup.name) is False


def test_cgroup_attach_keeps_foreign_bits_and_programs(node: Namespace, cgroup: Path) -> None:
    """Another program there sets a whole mark; ours, which runs after it, changes its own bits only."""
    with bpf_programs.attached(cgroup, bpf_programs.SOCK_CREATE, bpf_programs.mark_program(0xAA00 | FOREIGN)):
        assert node.call(marks_inside, cgroup) == {0xAA00 | FOREIGN}, "the control"
        (theirs,) = numbers(cgroup)
        node.call(groups.attach, cgroup.name, VALUE, MASK)
        assert node.call(marks_inside, cgroup) == {VALUE | FOREIGN}
        node.call(groups.detach, cgroup.name)
        assert numbers(cgroup) == [theirs]


def test_cgroup_attach_again_replaces_changed_mark_only(node: Namespace, cgroup: Path) -> None:
    node.call(groups.attach, cgroup.name, VALUE, MASK, DEVICES)
    first = numbers(cgroup), numbers(cgroup, syscall.SETSOCKOPT)
    assert node.call(groups.attach, cgroup.name, VALUE, MASK, DEVICES) is False
    assert (numbers(cgroup), numbers(cgroup, syscall.SETSOCKOPT)) == first
    assert node.call(groups.attach, cgroup.name, 0x900, MASK) is True
    assert node.call(marks_inside, cgroup) == {0x900}
    assert (len(numbers(cgroup)), numbers(cgroup, syscall.SETSOCKOPT)) == (1, []), "and it is confined no longer"


def test_cgroup_attach_after_race_keeps_one_program(node: Namespace, cgroup: Path) -> None:
    """Two processes saw no program, and each attached its own."""

    def twice() -> None:
        folder = os.open(cgroup, os.O_RDONLY)
        for value in (0x600, VALUE):
            (code,) = programs.service_programs(value, MASK, None).values()
            descriptor = syscall.load(syscall.SOCK_CREATE, code, programs.program_name())
            syscall.attach(folder, descriptor, syscall.SOCK_CREATE)

    node.call(twice)
    assert len(numbers(cgroup)) == 2, "the control"
    later = numbers(cgroup)[-1]
    assert node.call(groups.attach, cgroup.name, VALUE, MASK) is False
    assert numbers(cgroup) == [later]
    assert node.call(marks_inside, cgroup) == {VALUE}


def test_cgroup_shared_by_namespaces_has_mark_for_each(node: Namespace, far: Namespace, cgroup: Path) -> None:
    node.call(groups.attach, cgroup.name, VALUE, MASK)
    assert far.call(marks_inside, cgroup) == {0}, "a mark means nothing in another network namespace"
    far.call(groups.attach, cgroup.name, 0x700, MASK)
    assert node.call(marks_inside, cgroup) == {VALUE}
    assert far.call(marks_inside, cgroup) == {0x700}
    far.call(groups.detach, cgroup.name)
    assert node.call(marks_inside, cgroup) == {VALUE}


# --- confine ------------------------------------------------------------------------------


def _int(number: int, size: int = 4) -> bytes:
    return struct.pack("=I", number).ljust(size, b"\0")


REFUSED = {
    "another mark": (socket.SOL_SOCKET, socket.SO_MARK, _int(0x600)),
    "no mark": (socket.SOL_SOCKET, socket.SO_MARK, _int(0)),
    "another mark, long": (socket.SOL_SOCKET, socket.SO_MARK, _int(0x600, 5000)),
    "its mark, long": (socket.SOL_SOCKET, socket.SO_MARK, _int(VALUE, 5000)),
    "its mark, longer than can be": (socket.SOL_SOCKET, socket.SO_MARK, _int(VALUE, 100)),
    "another device": (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth7"),
    "a device, long": (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth7".ljust(5000, b"\0")),
    "the beginning of a device": (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"br-wa"),
    "a longer device": (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"br-wan2"),
    "the longest, but one letter": (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LONGEST[:-1].encode() + b"7"),
    "a device by number": (socket.SOL_SOCKET, _INDEX, _int(1)),
    "IP_UNICAST_IF": (_IP, _UNICAST, struct.pack("!I", 1)),
    "IPV6_UNICAST_IF": (_IPV6, _UNICAST6, struct.pack("!I", 1)),
}
ALLOWED = {
    "its mark": (socket.SOL_SOCKET, socket.SO_MARK, _int(VALUE)),
    "its mark and foreign bits": (socket.SOL_SOCKET, socket.SO_MARK, _int(VALUE | 0xFFFF0000 | FOREIGN)),
    "its mark, 8 bytes": (socket.SOL_SOCKET, socket.SO_MARK, _int(VALUE, 8)),
    "its device": (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"br-wan"),
    "its device and NUL": (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"br-wan\0rubbish\0"),
    "the longest device": (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LONGEST.encode()),
    "no device": (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b""),
    "no device by number": (socket.SOL_SOCKET, _INDEX, _int(0)),
    "no IP_UNICAST_IF": (_IP, _UNICAST, _int(0)),
    "SO_REUSEADDR": (socket.SOL_SOCKET, socket.SO_REUSEADDR, _int(1)),
    "SO_REUSEADDR, a page": (socket.SOL_SOCKET, socket.SO_REUSEADDR, _int(1, 4096)),
    "SO_REUSEADDR, more than a page": (socket.SOL_SOCKET, socket.SO_REUSEADDR, _int(1, 70000)),
    "IP_TTL": (_IP, socket.IP_TTL, _int(7)),
    "the number of SO_MARK at another level": (_IPV6, socket.SO_MARK, _int(1)),
}


def set_options(made: Callable[[], socket.socket] | None = None) -> dict[str, str]:
    """Return the result of each option on a new socket."""
    found = {}
    for name, option in (REFUSED | ALLOWED).items():
        with made() if made else socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
            found[name] = outcome(lambda one=one, option=option: one.setsockopt(*option))
            if name == "SO_REUSEADDR, more than a page":
                assert one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR), "it was allowed and did nothing"
    return found


def with_devices(node: Namespace) -> None:
    pairs = [("br-wan", "br-wan2"), ("br-wa", "eth7"), (LONGEST, f"{LONGEST[:-1]}7")]
    node.ip(*(f"link add {one} type veth peer name {other}" for one, other in pairs))


def test_cgroup_confined_service_sets_own_mark_and_device_only(node: Namespace, cgroup: Path) -> None:
    with_devices(node)
    free = node.call(bpf_programs.joined, cgroup, set_options)
    possible = {name for name, result in free.items() if result == SENT}
    assert possible >= set(REFUSED), "the control: without the program root may do all of them"
    node.call(groups.attach, cgroup.name, VALUE, MASK, DEVICES)
    inside = node.call(bpf_programs.joined, cgroup, set_options)
    assert {name: inside[name] for name in REFUSED} == dict.fromkeys(REFUSED, "EPERM")
    assert {name: inside[name] for name in ALLOWED} == {name: free[name] for name in ALLOWED}
    assert set(ALLOWED) - possible <= {"the number of SO_MARK at another level"}
    assert node.call(set_options) == free, "outside"


def test_cgroup_option_changed_meanwhile_is_not_taken(node: Namespace, cgroup: Path) -> None:
    """Another thread that changes the value meanwhile gets no other mark through, with lengths of all kinds."""
    node.call(groups.attach, cgroup.name, VALUE, MASK, ())

    def race() -> set[int]:
        import threading

        bpf_programs.joined(cgroup, lambda: None)
        libc = ctypes.CDLL(None, use_errno=True)
        area, stop = (ctypes.c_uint32 * 2000)(), threading.Event()

        def flip() -> None:
            while not stop.is_set():
                for _ in range(100):
                    area[0] = VALUE
                    area[0] = 0x600

        thread = threading.Thread(target=flip)
        thread.start()
        seen = set()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            for turn in range(4000):
                length = (4, 8, 64, 5000)[turn % 4]
                libc.setsockopt(one.fileno(), socket.SOL_SOCKET, socket.SO_MARK, area, length)
                seen.add(one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
        stop.set()
        thread.join()
        return seen

    assert node.call(race) == {VALUE}


# --- sockets and processes that move (B3, B4) ---------------------------------------------


def test_B4_moved_process_keeps_marks_of_open_sockets(node: Namespace, cgroup: Path) -> None:
    """A socket belongs to the cgroup in which it was opened: its mark stays, and so does what it may not do."""
    node.call(groups.attach, cgroup.name, VALUE, MASK, ())

    def move() -> dict[str, object]:
        home = bpf_programs.tree() / "cgroup.procs"
        early = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bpf_programs.joined(cgroup, lambda: None)
        mine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        home.write_text("0")
        late = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

        def named(one: socket.socket) -> str:
            return outcome(lambda: one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo"))

        marks = {name: one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) for name, one in
                 (("early", early), ("mine", mine), ("late", late))}  # fmt: skip
        return {"marks": marks, "named": [named(one) for one in (early, mine, late)]}

    assert node.call(move) == {"marks": {"early": 0, "mine": VALUE, "late": 0}, "named": [SENT, "EPERM", SENT]}


def test_B3_passed_socket_keeps_mark_and_confinement(node: Namespace, cgroup: Path) -> None:
    node.call(groups.attach, cgroup.name, VALUE, MASK, ())

    def hand_on() -> tuple[int, str]:
        here, there = socket.socketpair()
        if not (child := os.fork()):
            bpf_programs.joined(cgroup, lambda: None)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                socket.send_fds(there, [b"!"], [one.fileno()])
            os._exit(0)
        _, (got,), _, _ = socket.recv_fds(here, 1, 1)
        os.waitpid(child, 0)
        with socket.socket(fileno=got) as one:
            mark = one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
            return mark, outcome(lambda: one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x600))

    assert node.call(hand_on) == (VALUE, "EPERM")


# --- where it cannot be done ---------------------------------------------------------------


def refusal(node: Namespace, *arguments: object, function: Callable[..., object] = groups.attach) -> str:
    with pytest.raises(Unavailable) as caught:
        node.call(function, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cgroup_attach_missing_cgroup_is_refused(node: Namespace) -> None:
    assert "there is no such cgroup" in refusal(node, "no/such", VALUE, MASK)


def test_cgroup_attach_beside_exclusive_program_is_refused(
    node: Namespace, cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf_programs, "_ALLOW_MULTI", 0)
    with bpf_programs.attached(cgroup, bpf_programs.SOCK_CREATE, bpf_programs.mark_program(7)):
        theirs = numbers(cgroup)
        assert "BPF_F_ALLOW_MULTI" in refusal(node, cgroup.name, VALUE, MASK)
        assert numbers(cgroup) == theirs


def test_cgroup_attach_without_root_is_refused(node: Namespace, cgroup: Path) -> None:
    def try_it() -> None:
        groups.attach(cgroup.name, VALUE, MASK)

    with pytest.raises(Unavailable, match="root"):
        node.call(try_it, uid=NOBODY)


def test_cgroup_enter_threaded_domain_is_refused(node: Namespace, cgroup: Path) -> None:
    """A domain cgroup beside a threaded cgroup takes no process."""
    folders = [cgroup / name for name in ("threads", "beside")]
    for folder in folders:
        folder.mkdir()
    try:
        (folders[0] / "cgroup.type").write_text("threaded")
        assert "threaded" in refusal(node, f"{cgroup.name}/beside", VALUE, MASK, function=groups.enter)
    finally:
        for folder in folders:
            folder.rmdir()


# --- the tree, in all its places ----------------------------------------------------------


def _forbid(number: int, error: int) -> None:
    """Make a system call fail with `error` in this process and its children (seccomp(2))."""
    code = b"".join(
        struct.pack("=HBBI", *one)
        for one in ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7FFF0000))
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    syscalls.prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    assert ctypes.CDLL(None).prctl(22, 2, struct.pack("@HP", 4, ctypes.addressof(buffer))) == 0  # PR_SET_SECCOMP


_FSOPEN = 430
LAYOUTS = {
    "as it is here": [],
    "cgroup v2 alone": ["umount -R /sys/fs/cgroup", "mount -t cgroup2 none /sys/fs/cgroup"],
    "hybrid": ["umount -R /sys/fs/cgroup", "mount -t tmpfs none /sys/fs/cgroup", "mkdir -p /sys/fs/cgroup/unified",
               "mount -t cgroup2 none /sys/fs/cgroup/unified"],
    "nowhere mounted": ["umount -R /sys/fs/cgroup"],
}  # fmt: skip


def entered(path: str, error: int | None) -> dict[str, int]:
    if error is not None:
        _forbid(_FSOPEN, error)
    groups.enter(path, VALUE, MASK)
    return groups.own_socket_marks(socket.AF_INET6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("error", [None, errno.EPERM, errno.ENOSYS], ids=["fsopen", "EPERM", "ENOSYS"])
def test_cgroup_enter_works_in_every_mount_layout(
    node: Namespace, cgroup: Path, layout: str, error: int | None
) -> None:
    """nftpolicy mounts cgroup v2 itself, or uses an existing mount (containers, old kernels)."""
    for command in LAYOUTS[layout]:
        node.run(command.split())
    path = f"{cgroup.name}/made/here"
    if error is not None and layout == "nowhere mounted":
        said = refusal(node, path, error, function=entered)
        assert "cgroup v2" in said
        assert ("root" in said) is (error == errno.EPERM)
    else:
        assert node.call(entered, path, error) == {"SOCK_DGRAM": VALUE, "SOCK_STREAM": VALUE}
    for folder in (cgroup / "made/here", cgroup / "made"):
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()
