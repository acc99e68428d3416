"""`nftpolicy run`: the sockets of every kind of program carry the mark, or the program is not started."""

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from nftpolicy.kernel import cgroup as groups
from nftpolicy.kernel.bpf import syscall
from tests import native_client
from tests.guarded_lab import (
    ENVIRONMENT,
    OTHER_GID,
    POLICY,
    PROGRAM,
    SERVICE_GID,
    Guarded,
    gluon,
    guarded_lab,
    needs_readers,
    wan_routes_in_main,
    watching,
)
from tests.kernel import bpf_programs
from tests.lab import addresses as at
from tests.lab.limits import limit
from tests.lab.netns import wait_until
from tests.lab.packet_senders import DISCARD
from tests.lab.topology import Lab

pytestmark = pytest.mark.slow

BOTH = (at.SERVER[4], at.SERVER[6])
SERVICES = """
marks   = "cgroup"
cgroup  = "{tree}/fastd"
confine = true

[service.mail]
uplink = "wan"
user   = 8025
marks  = "cgroup"
cgroup = "{tree}/mail"

[service.own]
uplink = "wan"
group  = 8026

[service.led]
uplink = "wan"
user   = 8027
marks  = "uid-rule"

[service.wg]
uplink = "wan"
kernel = true
sport  = ["udp/51820"]
"""


@pytest.fixture(scope="module")
def tree() -> Iterator[str]:
    """A cgroup of this test run for those of the services."""
    with bpf_programs.cgroup() as path:
        yield path.name
        for folder in sorted(path.rglob("*/"), key=lambda one: -len(one.parts)):
            with contextlib.suppress(OSError):
                folder.rmdir()


def policy(lab: Lab, tree: str) -> str:
    return re.sub(r'marks  = "itself".*\n', SERVICES.format(tree=tree), gluon(lab))


@pytest.fixture(scope="module")
def made(tree: str) -> Iterator[Guarded]:
    """Node with the WAN's routes in main too: only the guard stops unmarked packets."""
    with guarded_lab(lambda lab: policy(lab, tree), resolver=True) as guarded:
        wan_routes_in_main(guarded.lab)
        yield guarded


@pytest.fixture(scope="module")
def opens(made: Guarded, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Program in C, as the node sees it; also as opens-root, which is setuid root."""
    built = native_client.build(tmp_path_factory.mktemp("native"))
    for name, mode in (("opens", 0o755), ("opens-root", 0o755 | stat.S_ISUID)):
        file = made.lab.node.outside(f"/run/lab/{name}")
        file.write_bytes(built.read_bytes())
        file.chmod(mode)
    return "/run/lab/opens"


def run(made: Guarded, *words: str, service: str = "fastd", check: bool = True) -> subprocess.CompletedProcess[str]:
    done = made.nftpolicy("run", service, "--", *words, check=check)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def refused(made: Guarded, *words: str, uid: int | None = None) -> tuple[int, str]:
    """Return exit status and the one line of standard error."""
    done = made.nftpolicy("run", *words, check=False, uid=uid)
    assert (done.stdout, done.stderr.count("\n"), "Traceback" in done.stderr) == ("", 1, False), done.stderr
    return done.returncode, done.stderr


# --- what it is made of -------------------------------------------------------------------

# How the program is started, and whether it has no privileges.
NO_CAPS = ("setpriv", "--reuid=65534", "--keep-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")
MADE_OF = {
    "static": (("{opens}", "libc"), True),
    "system calls": (("{opens}", "syscall"), True),
    "io_uring": (("{opens}", "io_uring"), True),
    "no capabilities": ((*NO_CAPS, "{opens}", "libc"), True),
    "setuid root": (("setpriv", "--reuid=65534", "--keep-groups", "{opens}-root", "syscall"), True),
    "children of a shell": (("sh", "-c", '(:; "$@") & wait', "sh", "sh", "-c", '"$@"', "sh", "{opens}", "libc"), True),
}


def command(which: str, opens: str, payload: str) -> list[str]:
    return [word.format(opens=opens) for word in MADE_OF[which][0]] + [str(DISCARD), payload, *BOTH]


def arrived(made: Guarded, payload: str, wanted: int) -> tuple[set[str], set[str]]:
    """Return the source addresses with which a payload reached the home, and the mesh."""

    def seen(sniffer) -> set[str]:  # type: ignore[no-untyped-def]
        return {str(frame.saddr) for frame in sniffer.frames() if payload.encode() in frame.payload}

    wait_until(lambda: len(seen(made.lab.wan)) >= wanted, 2, f"{wanted} datagrams")
    return seen(made.lab.wan), seen(made.lab.mesh_sniffer)


@pytest.mark.parametrize("which", MADE_OF)
def test_B1_run_marks_sockets_of_every_program_kind(made: Guarded, opens: str, which: str) -> None:
    payload = uuid.uuid4().hex
    said = run(made, *command(which, opens, payload)).stdout.splitlines()
    if which == "io_uring" and {line.split()[1] for line in said} <= {"EPERM", "ENOSYS", "EINVAL"}:
        pytest.skip(f"io_uring opens no socket here: {said} (kernel.io_uring_disabled, Linux 5.19)")
    assert said == ["1 sent", "1 sent"]
    own = {made.lab.wan_address(family) for family in (4, 6)}
    assert arrived(made, payload, 2) == (own, set()), "by the WAN, with the WAN's addresses"


@pytest.mark.parametrize("which", MADE_OF)
def test_B1_program_outside_run_is_dropped(made: Guarded, opens: str, which: str) -> None:
    """Unmarked packets do not leave, even with the service's group."""
    payload = uuid.uuid4().hex
    done = made.lab.node.run(command(which, opens, payload), gid=SERVICE_GID)
    assert done.stdout.splitlines() in (["0 EPERM", "0 EPERM"], ["no EPERM"] * 2)
    assert arrived(made, payload, 0) == (set(), set())


def test_control_without_guard_every_program_leaks(made: Guarded, opens: str) -> None:
    with made.off():
        for which in MADE_OF:
            payload = uuid.uuid4().hex
            done = made.lab.node.run(command(which, opens, payload), gid=SERVICE_GID)
            if "sent" in done.stdout:
                assert len(arrived(made, payload, 2)[0]) == 2, which
    made.stop_resolver()
    made.start_resolver()


def test_run_python_tcp_and_ping_leave_by_wan(made: Guarded) -> None:
    text = (
        "import socket\n"
        f"for address in {BOTH!r}:\n"
        "    with socket.create_connection((address, 7), 3) as one:\n"
        "        print(one.getsockname()[0], one.getsockopt(1, 36))\n"
    )
    said = run(made, "python3", "-c", text).stdout.splitlines()
    assert said == [f"{made.lab.wan_address(family)} 1" for family in (4, 6)]


def test_run_multipath_tcp_is_marked_or_dropped(made: Guarded) -> None:
    """Its subflows are sockets of the kernel, which no sock_create program sees; they inherit only SO_MARK."""
    text = (
        "import errno, socket, sys\n"
        "try: one = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)\n"
        "except OSError as error: sys.exit(print(errno.errorcode[error.errno]))\n"
        "if sys.argv[1:]: one.setsockopt(1, 36, 1)\n"
        f"one.settimeout(1)\ntry: one.connect(({at.SERVER[4]!r}, 7)); print(one.getsockname()[0])\n"
        "except OSError: print('dropped')\n"
    )
    with watching(made.lab) as watch:
        alone, by_itself = (run(made, "python3", "-c", text, *more).stdout.strip() for more in ((), ("mark",)))
        assert (watch.unmarked, watch.stray) == (0, 0)
    if alone in ("EPROTONOSUPPORT", "ENOPROTOOPT"):
        pytest.skip(f"no multipath TCP here: {alone}")
    assert alone in ("dropped", made.lab.wan_address(4))
    assert by_itself == made.lab.wan_address(4), "the control: with SO_MARK its subflows are marked"


def test_run_gets_names_from_wan(made: Guarded) -> None:
    text = f"import socket; print(sorted({{one[4][0] for one in socket.getaddrinfo({at.WHO!r}, 1)}}))"
    outside = made.lab.node.run(["python3", "-c", text])
    assert outside.stdout.strip() == str(sorted(at.WHO_IN_MESH.values())), "the control"
    assert run(made, "python3", "-c", text).stdout.strip() == str(sorted(at.WHO_AT_HOME.values()))


# --- identity -----------------------------------------------------------------------------


def test_run_sets_group_and_supplementary_groups(made: Guarded) -> None:
    assert run(made, "id", "-u").stdout == "0\n"
    argv = [PROGRAM, "run", "fastd", "--", "id", "-G"]
    assert made.lab.node.run(["id", "-G"], groups=[0, 4, OTHER_GID]).stdout == f"0 4 {OTHER_GID}\n", "the control"
    assert made.lab.node.run(argv, groups=[0, 4, OTHER_GID], env=ENVIRONMENT).stdout == f"{SERVICE_GID}\n"


def test_run_user_without_account_has_group_of_service(made: Guarded) -> None:
    assert run(made, "sh", "-c", "id -u; id -G", service="mail").stdout == "8025\n65534\n"


def test_run_user_with_account_has_groups_and_home(made: Guarded, tree: str) -> None:
    """The account is any with a user id that no other service has, such as daemon of Debian."""
    import pwd

    user = next(one for one in pwd.getpwall() if one.pw_uid not in (0, 65534) and one.pw_gid)
    text = policy(made.lab, tree).replace("user   = 8025", f"user   = {user.pw_uid}")
    made.file.write_text(text)
    made.apply()
    try:
        shown = run(made, "sh", "-c", "id -u; id -g; echo $HOME $USER", service="mail").stdout.split()
        assert shown == [str(user.pw_uid), str(user.pw_gid), user.pw_dir, user.pw_name]
    finally:
        made.file.write_text(policy(made.lab, tree))
        made.apply()


def _sender(path: str | None, gid: int, payload: bytes, hand_to: int | None = None) -> list[str]:
    """Open a socket and send, perhaps through another process, in cgroup `path` (None: unchanged) with group `gid`."""
    if path is not None:
        groups.enter(path, 1, 1)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    said = []
    for address in BOTH:
        one = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        mark = one.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
        said.append(f"{mark} {_send(one, hand_to, payload, address)}")
    return said


def _send(one: socket.socket, gid: int | None, payload: bytes, address: str) -> str:
    """Send here, or in a process of another group that gets the socket (SCM_RIGHTS)."""
    if gid is None:
        try:
            one.sendto(payload, (address, DISCARD))
        except OSError as error:
            return str(error.errno)
        return "sent"
    here, there = socket.socketpair()
    if not (child := os.fork()):
        _, (got,), _, _ = socket.recv_fds(there, 1, 1)
        one.close()
        groups_file = bpf_programs.tree() / "cgroup.procs"
        os.setresgid(0, 0, 0)
        groups_file.write_text("0")
        os.setresgid(gid, gid, gid)
        os.write(there.fileno(), _send(socket.socket(fileno=got), None, payload, address).encode())
        os._exit(0)
    socket.send_fds(here, [b"!"], [one.fileno()])
    os.waitpid(child, 0)
    return here.recv(100).decode()


def test_B3_passed_socket_keeps_entitlement(made: Guarded, tree: str) -> None:
    """Mark and group are those of the opener: each holder of the descriptor may use the uplink."""
    payload = uuid.uuid4().hex
    path = f"{tree}/fastd"
    said = made.lab.node.call(_sender, path, SERVICE_GID, payload.encode(), OTHER_GID, keep_caps=True)
    assert said == ["1 sent", "1 sent"]
    assert len(arrived(made, payload, 2)[0]) == 2


@pytest.mark.parametrize(
    ("inside", "gid", "said"),
    [(True, SERVICE_GID, "1 sent"), (True, OTHER_GID, "1 1"), (False, SERVICE_GID, "0 1"), (False, OTHER_GID, "0 1")],
    ids=["of the service", "a stranger's group inside", "the service's group outside", "a stranger outside"],
)
def test_B4_uplink_requires_cgroup_and_group(made: Guarded, tree: str, inside: bool, gid: int, said: str) -> None:
    payload = uuid.uuid4().hex
    before = made.counters()["inet/wan.unentitled"]
    path = f"{tree}/fastd" if inside else None
    with watching(made.lab) as watch:
        assert made.lab.node.call(_sender, path, gid, payload.encode()) == [said, said]
        assert (watch.unmarked, watch.stray) == (0, 0)
    assert len(arrived(made, payload, 2 if "sent" in said else 0)[0]) == (2 if "sent" in said else 0)
    assert (made.counters()["inet/wan.unentitled"] > before) is (said == "1 1")


# --- the process --------------------------------------------------------------------------


def test_run_executes_program_in_cgroup(made: Guarded, tree: str) -> None:
    process = made.lab.node.popen([PROGRAM, "run", "fastd", "--", "sleep", "60"], env=ENVIRONMENT)
    try:
        home = Path(f"/proc/{process.pid}")
        wait_until(lambda: (home / "comm").read_text() == "sleep\n", 20, "the program")
        assert f"/{tree}/fastd\n" in (home / "cgroup").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(limit(5)) == -signal.SIGTERM
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("words", "status"), [("exit 7", 7), ("exit 0", 0), ("kill -KILL $$", -9), ("kill -INT $$", -2)]
)
def test_run_returns_exit_status_of_program(made: Guarded, words: str, status: int) -> None:
    done = run(made, "sh", "-c", words, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_run_passes_input_and_arguments(made: Guarded) -> None:
    argv = [PROGRAM, "run", "fastd", "--", "sh", "-c", 'cat; echo "$0/$1/$2/"é', "--check", "a b", "--", "-x"]
    done = made.lab.node.run(argv, input="given\n", env=ENVIRONMENT)
    assert done.stdout == "given\n--check/a b/--/é\n"


# --- what a hostile program does not get ----------------------------------------------------

OF_ROOT = {"SECRET": "s3cret", "LD_LIBRARY_PATH": "/tmp", "SSH_AUTH_SOCK": "/run/agent", "LC_TIME": "C", "HOME": "/"}


@pytest.mark.parametrize("service", ["fastd", "mail"])
def test_run_environment_has_listed_variables_only(made: Guarded, service: str) -> None:
    def names(*options: str) -> set[str]:
        argv = [PROGRAM, "run", service, *options, "--", "/usr/bin/env", "-0"]
        shown = made.lab.node.run(argv, env={**ENVIRONMENT, **OF_ROOT}).stdout
        return {variable.partition("=")[0] for variable in shown.split("\0")[:-1]}

    usual = names()
    assert {"LC_TIME", "PATH"} < usual
    assert usual.isdisjoint({"SECRET", "LD_LIBRARY_PATH", "SSH_AUTH_SOCK", *ENVIRONMENT})
    assert ("HOME" in usual) == (service == "fastd"), "that of root, for the user of root"
    assert names("--env", "SECRET", "--env", "SSH_AUTH_SOCK") == usual | {"SECRET", "SSH_AUTH_SOCK"}
    assert refused(made, service, "--env", "UNSET_HERE", "--", "true")[0] == 2


def test_run_closes_descriptors_unless_named(made: Guarded) -> None:
    program = ["sh", "-c", "ls /proc/self/fd"]
    handing_on = ["sh", "-c", 'exec 7</etc/shadow 8</dev/null; exec "$@"', "sh"]

    def shown(*words: str) -> list[str]:
        return made.lab.node.run([*handing_on, *words, *program], env=ENVIRONMENT).stdout.split()

    assert shown() == ["0", "1", "2", "3", "7", "8"], "the control; 3 is the directory's own"
    assert shown(PROGRAM, "run", "fastd", "--") == ["0", "1", "2", "3"]
    assert shown(PROGRAM, "run", "fastd", "--fd", "8", "--") == ["0", "1", "2", "3", "8"]
    assert refused(made, "fastd", "--fd", "99", "--", "true")[0] == 2


def test_run_keeps_signals_and_sets_no_new_privs(made: Guarded) -> None:
    """A program in Python would ignore signals of its own."""

    def lines(*words: str) -> dict[str, str]:
        text = made.lab.node.run([*words, "cat", "/proc/self/status"], env=ENVIRONMENT).stdout
        return dict(re.findall(r"^(SigIgn|SigBlk|NoNewPrivs|CapEff):\t(.*)$", text, re.MULTILINE))

    plain = lines()
    assert lines(PROGRAM, "run", "fastd", "--") == plain, "a service with the user of root"
    assert lines(PROGRAM, "run", "mail", "--") == {**plain, "NoNewPrivs": "1", "CapEff": "0" * 16}


def test_run_setuid_program_has_privileges_only_if_named(made: Guarded) -> None:
    setuid = made.lab.node.outside("/run/lab/id-of-root")
    setuid.write_bytes(Path("/usr/bin/id").read_bytes())
    setuid.chmod(0o755 | stat.S_ISUID)
    assert run(made, "/run/lab/id-of-root", "-u", service="mail").stdout == "0\n"
    assert run(made, "sh", "-c", "/run/lab/id-of-root -u", service="mail").stdout == "8025\n"


# Runs its arguments and a program that types into the terminal; prints the words of the output.
TYPING = """
import os, pty, sys
text = (
    "import fcntl, os, termios\\n"
    "try: print('typed', fcntl.ioctl(0, termios.TIOCSTI, b'!'), os.getuid())\\n"
    "except OSError as error: print('errno', error.errno, os.getuid(), os.ttyname(0) == os.ttyname(1))\\n"
)
pid, terminal = pty.fork()
if not pid:
    os.execvp(sys.argv[1], [*sys.argv[1:], "/usr/bin/python3", "-c", text])
output = b""
try:
    while part := os.read(terminal, 1000):
        output += part
except OSError:  # EIO: the program has ended
    pass
os.waitpid(pid, 0)
print(*output.decode().split())
"""


@pytest.mark.parametrize(("service", "uid"), [("fastd", "0"), ("mail", "8025")])
def test_run_cannot_type_into_terminal(made: Guarded, service: str, uid: str) -> None:
    """TIOCSTI: root's shell executes what a program has typed."""

    def said(*words: str) -> str:
        return made.lab.node.run(["python3", "-c", TYPING, *words], env=ENVIRONMENT).stdout

    assert f"typed b'!' {uid}" in said("setpriv", f"--reuid={uid}", "--clear-groups"), "the control"
    assert f"errno 1 {uid} True" in said(PROGRAM, "run", service, "--")


KEYRING = """
import ctypes, platform, subprocess, sys
number = {"x86_64": 250}.get(platform.machine(), 219)
call = ctypes.CDLL(None).syscall
if sys.argv[1:]:
    call(number, 1, None)  # KEYCTL_JOIN_SESSION_KEYRING: one that is not the kernel's default
print(call(number, 0, -3, 0), flush=True)  # KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING
for service in ("fastd", "mail") if sys.argv[1:] else ():
    subprocess.run([sys.argv[1], "run", service, "--", "/usr/bin/python3", "/run/lab/keyring.py"])
"""


def test_run_leaves_session_keyring_of_root(made: Guarded) -> None:
    made.lab.node.outside("/run/lab/keyring.py").write_text(KEYRING)
    root, same_user, other_user = made.lab.node.run(
        ["python3", "/run/lab/keyring.py", PROGRAM], env=ENVIRONMENT
    ).stdout.split()
    if root == "-1":
        pytest.skip("this kernel has no keyrings")
    assert same_user == root, "the control: the user of root keeps it"
    assert other_user != root


def test_run_reports_inherited_socket(made: Guarded) -> None:
    text = (
        "import os, socket\n"
        "one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "one.bind(('127.0.0.1', 4321)); one.set_inheritable(True)\n"
        f"os.execv({PROGRAM!r}, [{PROGRAM!r}, 'run', 'fastd', '--fd', str(one.fileno()), '--', 'true'])\n"
    )
    done = made.lab.node.run(["python3", "-c", text], env=ENVIRONMENT)
    assert "SOCK_DGRAM socket, port 4321, was opened before" in done.stderr
    assert "lacks the mark 0x1/0x1" in done.stderr


def test_run_twice_attaches_programs_once(made: Guarded, tree: str) -> None:
    process = made.lab.node.popen([PROGRAM, "run", "fastd", "--", "cat"], env=ENVIRONMENT, stdin=subprocess.PIPE)
    try:
        wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "cat\n", 20, "the program")
        run(made, "true")
        folder = os.open(bpf_programs.tree() / tree / "fastd", os.O_RDONLY)
        try:
            for attach_type in syscall.ATTACH_TYPES:
                assert len(syscall.attached_programs(folder, attach_type)) == 1
        finally:
            os.close(folder)
    finally:
        process.communicate(timeout=limit(5))
    assert run(made, "echo", "again").stdout == "again\n"


def test_run_service_with_own_marks_sets_group_only(made: Guarded) -> None:
    text = (
        "import os, socket\n"
        "one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "print(os.getgid(), one.getsockopt(1, 36))\n"
        f"one.setsockopt(1, 36, 1); one.sendto(b'by itself', ({at.SERVER[4]!r}, 9))\n"
    )
    assert run(made, "python3", "-c", text, service="own").stdout == "8026 0\n"
    assert arrived(made, "by itself", 1)[0] == {made.lab.wan_address(4)}


def test_run_uid_rule_service_leaves_unmarked_socket(made: Guarded) -> None:
    """Packets of this user leave by the WAN, with its address; the same packets of another user do not."""
    own = [made.lab.wan_address(family) for family in (4, 6)]

    def sends(payload: str) -> list[str]:
        text = (
            "import os, socket\n"
            f"for address in {BOTH!r}:\n"
            "    one = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"    one.connect((address, {DISCARD}))\n"
            "    print(os.getuid(), one.getsockopt(1, 36), one.getsockname()[0])\n"
            f"    try: one.send({payload.encode()!r})\n"
            "    except PermissionError: print('refused')\n"
        )
        return ["/usr/bin/python3", "-c", text]  # which an ordinary user may run

    led, another, without = (uuid.uuid4().hex for _ in range(3))
    with watching(made.lab) as watch:
        said = run(made, *sends(led), service="led").stdout.splitlines()
        assert said == [f"8027 0 {address}" for address in own]
        assert arrived(made, led, 2) == (set(own), set())
        dropped = made.counters()["inet/wan.dropped"]
        made.lab.node.run(sends(another), uid=8028)
        assert made.counters()["inet/wan.dropped"] == dropped + 2
        assert arrived(made, another, 0) == (set(), set())
        assert (watch.unmarked, watch.stray) == (0, 0), "behind the guard it carries the mark"
    with made.off():
        made.lab.node.run(sends(without), uid=8028)
        assert arrived(made, without, 2)[0] == set(own), "the control: without the guard the other user's is seen"
    made.stop_resolver()
    made.start_resolver()


def test_run_uid_rule_service_without_rule_is_refused(made: Guarded) -> None:
    made.lab.node.ip("rule del priority 850")
    try:
        status, said = refused(made, "led", "--", "echo", "started")
        assert (status, "is not in force" in said) == (5, True), said
    finally:
        made.apply()
    assert run(made, "echo", "started", service="led").stdout == "started\n"


def test_run_confined_service_as_root_stays_confined(made: Guarded) -> None:
    text = (
        "import socket, errno\n"
        "one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for value in (b'bat0', b'br-wan'):\n"
        "    try: one.setsockopt(1, 25, value); print('taken')\n"
        "    except OSError as error: print(errno.errorcode[error.errno])\n"
        "try: one.setsockopt(1, 36, 2); print('taken')\n"
        "except OSError as error: print(errno.errorcode[error.errno])\n"
    )
    assert run(made, "python3", "-c", text).stdout.split() == ["EPERM", "taken", "EPERM"]
    free = made.lab.node.run(["python3", "-c", text], gid=SERVICE_GID)
    assert free.stdout.split()[:2] == ["taken", "taken"], "the control"


# --- refusals -----------------------------------------------------------------------------


def test_run_unstartable_program_is_refused(made: Guarded) -> None:
    assert refused(made, "fasdt", "--", "true") == (
        2,
        "nftpolicy: gluon-fastd has no service 'fasdt' (did you mean 'fastd'?); known are fastd, mail, own, led, wg\n",
    )
    assert refused(made, "wg", "--", "true")[0] == 2
    assert refused(made, "fastd")[0] == 2
    assert refused(made, "fastd", "--", "no-such-program")[0] == 127
    assert refused(made, "fastd", "--", POLICY)[0] == 126
    for name, text, status in (("no-interpreter", "#!/none/sh\n", 127), ("garbage", "\x01", 126)):
        file = made.lab.node.outside(f"/run/lab/{name}")
        file.write_text(text)
        file.chmod(0o755)
        assert refused(made, "fastd", "--", f"/run/lab/{name}")[0] == status, name


def test_run_program_not_executable_by_user_is_refused(made: Guarded) -> None:
    file = made.lab.node.outside("/run/lab/roots-own")
    file.write_text("#!/bin/sh\n")
    file.chmod(0o700)
    assert run(made, "/run/lab/roots-own").returncode == 0, "the control: of a group, it is root"
    assert refused(made, "mail", "--", "/run/lab/roots-own")[0] == 126


def test_run_without_root_is_refused(made: Guarded) -> None:
    needs_readers()
    status, said = refused(made, "fastd", "--", "true", uid=65534)
    assert (status, "root" in said) == (4, True)


def test_run_without_cgroup_v2_is_refused(made: Guarded) -> None:
    """The kernel answers as one without cgroup v2, and no mount of it exists."""
    from tests.kernel.test_service_cgroup import _FSOPEN, _forbid

    def without() -> tuple[int, str]:
        _forbid(_FSOPEN, 19)  # ENODEV
        subprocess.run(["unshare", "--mount", "true"], check=True)
        hidden = "mount -t tmpfs none /sys/fs/cgroup && exec " + " ".join([PROGRAM, "run", "fastd", "--", "echo", "on"])
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", hidden],
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    status, said = made.lab.node.call(without)
    assert (status, "cgroup v2 is not mounted here, and cannot be mounted" in said) == (4, True), said


def test_run_without_guard_in_force_is_refused(made: Guarded) -> None:
    said = "is not in force, since guard or ip rules differ: run 'nftpolicy status' first"
    made.lab.node.ip("rule del priority 510")
    try:
        assert refused(made, "fastd", "--", "true") == (5, f"nftpolicy: gluon-fastd {said}\n")
    finally:
        made.apply()
    made.lab.node.nft("insert rule inet nftpolicy wan.guard accept")
    try:
        assert refused(made, "fastd", "--", "true") == (5, f"nftpolicy: gluon-fastd {said}\n")
    finally:
        made.apply()


@pytest.mark.parametrize("where", ["on it", "above it"])
def test_run_with_foreign_program_clearing_mark_is_refused(made: Guarded, tree: str, where: str) -> None:
    """Foreign programs run after ours: on the same cgroup if attached later, on a parent always."""
    path = bpf_programs.tree() / tree / ("fastd" if where == "on it" else "")
    run(made, "true")
    with bpf_programs.attached(path, bpf_programs.SOCK_CREATE, bpf_programs.mark_program(0x2)):
        status, said = refused(made, "fastd", "--", "echo", "started")
        assert (status, "has the mark 0x2, and not 0x1/0x1" in said) == (5, True), said
    assert run(made, "echo", "started").stdout == "started\n"


def test_run_with_foreign_program_denying_sockets_is_refused(made: Guarded, tree: str) -> None:
    deny = bpf_programs._instruction(0xB7, 0, value=0) + bpf_programs._instruction(0x95)
    with bpf_programs.attached(bpf_programs.tree() / tree, bpf_programs.SOCK_CREATE, deny):
        status, said = refused(made, "fastd", "--", "echo", "started")
    assert (status, "no socket can be opened" in said) == (5, True), said


def test_run_default_cgroup_requires_applied_policy() -> None:
    """The default cgroup is nftpolicy/SERVICE. Programs of other namespaces on it do not affect these sockets."""
    name = f"t{uuid.uuid4().hex[:12]}"
    with Lab() as lab:
        text = gluon(lab).replace("fastd]", f"{name}]").replace('"itself"', '"cgroup"')
        made = Guarded(lab, text)
        assert refused(made, name, "--", "true")[0] == 2
        status, said = refused(made, name, "--policy", POLICY, "--", "true")
        assert (status, f"run 'nftpolicy apply {POLICY}' first" in said) == (5, True)
        made.apply()
        try:
            done = made.nftpolicy("run", name, "--", "sh", "-c", "cat /proc/self/cgroup")
            assert f"/nftpolicy/{name}\n" in done.stdout
        finally:
            (bpf_programs.tree() / "nftpolicy" / name).rmdir()


# --- --check and --detach -----------------------------------------------------------------


def checked(made: Guarded, *more: str, service: str = "fastd") -> tuple[int, list[str]]:
    done = made.nftpolicy("run", service, "--check", *more, check=False)
    lines = done.stderr.splitlines()
    assert all(line.startswith("nftpolicy: ") for line in lines), done.stderr
    return done.returncode, [line.removeprefix("nftpolicy: ") for line in lines] + done.stdout.splitlines()


def test_run_check_reports_and_starts_program(made: Guarded) -> None:
    own = [made.lab.wan_address(family) for family in (4, 6)]
    wanted = [
        "ok: IPv4: a new socket has the mark 0x1",
        "ok: IPv6: a new socket has the mark 0x1",
        "ok: confined to br-wan: SO_BINDTODEVICE to another device is refused",
        f"ok: IPv4: routed by br-wan, from {own[0]}",
        f"ok: IPv6: routed by br-wan, from {own[1]}",
        "ok: IPv4: DNS: queries go to the resolver of uplink wan (127.0.0.1:54)",
        "ok: IPv6: DNS: queries go to the resolver of uplink wan ([::1]:54)",
        "ok: names: neither systemd-resolved nor nscd is reachable by its socket",
    ]
    assert checked(made) == (0, wanted)
    assert checked(made, "--", "echo", "started") == (0, [*wanted, "started"])
    assert checked(made, service="mail") == (0, [line for line in wanted if "confined" not in line])
    status, lines = checked(made, service="own")
    assert (status, lines[0]) == (0, "not tried: mark: set by the program itself")
    assert lines[1:] == wanted[3:]
    status, lines = checked(made, service="led")
    assert (status, lines[0]) == (0, "not tried: mark: none, an ip rule routes the service's user")
    assert lines[1:] == wanted[3:]


def test_run_check_sends_nothing_outside(made: Guarded) -> None:
    with watching(made.lab) as watch:
        made.lab.wan.drain(), made.lab.mesh_sniffer.drain()
        assert checked(made)[0] == 0
        assert watch.unmarked == 0
    for sniffer in (made.lab.wan, made.lab.mesh_sniffer):
        assert [frame for frame in sniffer.frames() if b"version" in frame.payload] == []


def test_run_check_without_resolver_fails(made: Guarded) -> None:
    made.stop_resolver()
    try:
        status, lines = checked(made, "--", "echo", "started")
        assert (status, lines[-3:-1]) == (
            1,
            [f"fault: IPv{family}: DNS: queries do not reach the resolver of uplink wan ({listen}): "
             "it does not run; start 'nftpolicy resolver'" for family, listen in ((4, "127.0.0.1:54"), (6, "[::1]:54"))],
        )  # fmt: skip
    finally:
        made.start_resolver()


def test_run_check_with_foreign_dns_rule_fails(made: Guarded) -> None:
    """Foreign rules before ours: one prevents the redirect, one redirects to the home's DNS, which would answer."""
    made.lab.node.nft(
        "table inet other {\n"
        " chain raw { type filter hook output priority -300; ip6 daddr 2001:db8:5:3::53 notrack; }\n"
        f" chain nat {{ type nat hook output priority -150; udp dport 53 dnat ip to {at.HOME[4]}; }}\n}}"
    )
    try:
        status, lines = checked(made)
    finally:
        made.lab.node.nft("delete table inet other")
    assert status == 1
    faults = [line.partition(" (")[0] for line in lines if line.startswith("fault")]
    assert faults == [f"fault: IPv{family}: DNS: queries do not reach the resolver of uplink wan" for family in (4, 6)]


def test_run_check_with_wrong_or_missing_route_fails(made: Guarded) -> None:
    made.lab.node.ip("-6 route flush table 1 proto static", f"-6 route del default dev {at.WAN} table 1")
    made.lab.node.ip(f"route replace default via {at.GATEWAY[4]} dev {at.MESH} table 1 metric 10")
    try:
        status, lines = checked(made)
        assert status == 1
        assert "fault: IPv4: routed by bat0" in "\n".join(lines)
        assert "fault: IPv6: no route to 2001:db8:5:3::53 with the mark" in "\n".join(lines)
    finally:
        made.lab.node.ip(f"route del default dev {at.MESH} table 1 metric 10")
        made.lab.wan_up()


def test_run_detach_removes_programs(made: Guarded, tree: str) -> None:
    run(made, "true")
    assert made.nftpolicy("run", "fastd", "--detach").stdout == f"fastd: detached from cgroup {tree}/fastd\n"
    assert (
        made.nftpolicy("run", "fastd", "--detach").stdout == f"fastd: no program is attached to cgroup {tree}/fastd\n"
    )
    assert refused(made, "own", "--detach")[0] == 2
    assert run(made, "echo", "again").stdout == "again\n"
