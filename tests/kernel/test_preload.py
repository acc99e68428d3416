"""libpacketmark.so: sockets that it marks, errors that it raises, and programs that it cannot mark."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import hatch_build
from nftpolicy.kernel import capability
from nftpolicy.kernel.cgroup import MarkedCgroup
from nftpolicy.kernel.errors import Unavailable
from nftpolicy.policy.mark import Mark
from nftpolicy.runtime.services import preload
from tests.c_helpers import CLIENT, FOUR, build, public_folder
from tests.lab import syslog_listener
from tests.lab.limits import limit
from tests.lab.netns import Namespace, wait_until

from .two_link_node import counters

NOBODY = {"user": 65534, "group": 65534, "extra_groups": []}
NOPERM, CONFIG = 77, 78
NEEDS = "a mark is VALUE or VALUE/MASK"

OTHERS = r"""
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
static int mark_of(int fd)
{
    int mark = -1;
    socklen_t size = sizeof(mark);
    getsockopt(fd, SOL_SOCKET, SO_MARK, &mark, &size);
    return mark;
}
int main(void)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof(here);
    int pair[2], listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    bind(listener, (void *)&here, size), listen(listener, 1), getsockname(listener, (void *)&here, &size);
    connect(client, (void *)&here, size);
    printf("accepted %d\n", mark_of(accept(listener, 0, 0)));
    printf("raw %d %d\n", mark_of(socket(AF_INET, SOCK_RAW, 255)), mark_of(socket(AF_INET6, SOCK_RAW, 58)));
    int made = socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    printf("pair %d %d\n", made, mark_of(pair[0]));
    printf("others %d %d\n", mark_of(socket(AF_UNIX, SOCK_DGRAM, 0)), mark_of(socket(AF_PACKET, SOCK_DGRAM, 0)));
    return 0;
}
"""
ERRORS = r"""
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
int main(void)
{
    errno = 4711;
    int good = socket(AF_INET, SOCK_DGRAM, 0), kept = errno;
    int bad = socket(AF_INET, SOCK_STREAM, 17), why = errno;
    printf("%d %d %d %d\n", good >= 0, kept, bad, why == EPROTONOSUPPORT);
    return 0;
}
"""
THREADS = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
extern void *__libc_malloc(size_t);
static int bare, taken, counting;
void *malloc(size_t size)
{
    if (counting)
        __atomic_add_fetch(&taken, 1, __ATOMIC_RELAXED);
    return __libc_malloc(size);
}
static void *work(void *nothing)
{
    for (int round = 0; round < 300; round++) {
        int fd = socket(round % 2 ? AF_INET : AF_INET6, SOCK_DGRAM, 0), mark = -1;
        socklen_t size = sizeof(mark);
        if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_MARK, &mark, &size) || mark != 0x500)
            __atomic_add_fetch(&bare, 1, __ATOMIC_RELAXED);
        close(fd);
    }
    return nothing;
}
int main(void)
{
    pthread_t threads[8];
    for (int one = 0; one < 8; one++)
        pthread_create(&threads[one], 0, work, 0);
    for (int one = 0; one < 8; one++)
        pthread_join(threads[one], 0);
    counting = 1;
    work(0);
    counting = 0;
    printf("%d %d\n", bare, taken);
    free(malloc(1));
    return 0;
}
"""
EARLY = r"""
#include <stdio.h>
#include <sys/socket.h>
__attribute__((constructor)) static void early(void)
{
    int mark = -1;
    socklen_t size = sizeof(mark);
    getsockopt(socket(AF_INET, SOCK_DGRAM, 0), SOL_SOCKET, SO_MARK, &mark, &size);
    fprintf(stderr, "early %d\n", mark);
}
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Directory that every user may enter, with the library: the checkout may be accessible to root only."""
    if not preload.LIBRARY.exists():
        pytest.skip("libpacketmark.so is not built, since there was no C compiler (python hatch_build.py)")
    with public_folder() as made:
        shutil.copy(preload.LIBRARY, made)
        yield made


@pytest.fixture(scope="module")
def client(folder: Path) -> Path:
    return build(folder, CLIENT)


def environment(folder: Path, mark: str | None, **more: str) -> dict[str, str]:
    named = {} if mark is None else {"LIBPACKETMARK_MARK": mark}
    return {"LD_PRELOAD": str(folder / "libpacketmark.so"), **named, **more}


def run(program: Path, env: dict[str, str], **options) -> subprocess.CompletedProcess:  # type: ignore[no-untyped-def,type-arg]
    return subprocess.run([program], env=env, capture_output=True, text=True, timeout=limit(20), check=False, **options)


@pytest.fixture
def bare(client: Path) -> None:
    """Control: without the library a socket has no mark."""
    assert run(client, {}).stdout.split() == ["0"] * FOUR


# What it marks


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("text", "mark"),
    [("1", 1), ("0x1", 1), ("0x1/0x1", 1), ("1280/65280", 0x500), ("0x500/0xFF00", 0x500), ("4294967295", -1)],
)
def test_preload_marks_every_ip_socket(folder: Path, client: Path, text: str, mark: int) -> None:
    done = run(client, environment(folder, text))
    assert (done.stdout.split(), done.stderr, done.returncode) == ([str(mark)] * FOUR, "", 0)


def test_preload_marks_raw_and_accepted_but_not_unix_sockets(folder: Path) -> None:
    program = build(folder, OTHERS, name="others")
    wanted = "accepted 5\nraw 5 5\npair 0 0\nothers 0 0\n"
    assert run(program, environment(folder, "5")).stdout == wanted
    assert run(program, {}).stdout == wanted.replace("5", "0"), "the control"


def test_preload_environment_sets_mark_and_mandatory_mode(client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not preload.LIBRARY.exists():
        pytest.skip("libpacketmark.so is not built, since there was no C compiler (python hatch_build.py)")
    monkeypatch.setenv("LIBPACKETMARK_OPTIONAL", "1")
    made = {**os.environ, **preload.preload_environment(Mark(0x500, 0xFF00))}
    assert run(client, made).stdout.split() == ["1280"] * FOUR
    assert made["LIBPACKETMARK_OPTIONAL"] == "0"


def test_preload_environment_keeps_other_libraries() -> None:
    ours = str(preload.library_path())
    for before, after in (("", ours), ("a.so b.so", f"{ours}:a.so:b.so"), (f"a.so:{ours}", f"{ours}:a.so")):
        assert preload.preload_environment(Mark(1, 1), {"LD_PRELOAD": before})["LD_PRELOAD"] == after


def test_preload_keeps_bits_outside_mask(folder: Path, client: Path) -> None:
    try:
        group = MarkedCgroup(f"test-preload-{os.getpid()}", 0x3, 0x3)
        group.__enter__()
    except Unavailable as error:
        pytest.skip(str(error))
    try:
        for mark, seen in (("0x500/0xff00", 0x503), ("0x500", 0x500), ("0x502/0xff02", 0x503)):
            found = run(client, environment(folder, mark), preexec_fn=group.before_exec).stdout.split()
            assert found == [str(seen)] * FOUR
        assert run(client, {}, preexec_fn=group.before_exec).stdout.split() == ["3"] * FOUR, "inconclusive"
    finally:
        group.__exit__()


def test_preload_socket_errors_equal_kernel_errors(folder: Path) -> None:
    program = build(folder, ERRORS, name="errors")
    assert run(program, environment(folder, "1")).stdout == run(program, {}).stdout == "1 4711 -1 1\n"


def test_preload_marks_sockets_of_threads_without_allocation(folder: Path) -> None:
    program = build(folder, THREADS, "-pthread", name="threads")
    assert run(program, environment(folder, "0x500/0xff00")).stdout == "0 0\n"
    assert run(program, {}).stdout == "2700 0\n", "the control: sockets without the mark are counted"


def test_preload_marks_socket_of_earlier_library(folder: Path, client: Path) -> None:
    early = build(folder, EARLY, "-shared", "-fPIC", name="early.so")
    both = f"{folder}/libpacketmark.so:{early}"
    done = run(client, {"LD_PRELOAD": both, "LIBPACKETMARK_MARK": "7"})
    assert (done.stderr, done.stdout.split()) == ("early 7\n", ["7"] * FOUR)


def test_preload_with_musl_marks_and_refuses(folder: Path) -> None:
    program = build(folder, CLIENT, name="musl-client", by="musl-gcc")
    source = hatch_build.SOURCE.read_text()
    build(folder, source, *hatch_build.FLAGS, "-ldl", name="musl-packetmark.so", by="musl-gcc")
    env = {"LD_PRELOAD": f"{folder}/musl-packetmark.so", "LIBPACKETMARK_MARK": "0x500/0xff00"}
    assert run(program, env).stdout.split() == ["1280"] * FOUR
    assert run(program, {}).stdout.split() == ["0"] * FOUR, "the control"
    done = run(program, env, **NOBODY)
    assert (done.returncode, done.stdout) == (NOPERM, "")


# What it refuses


@pytest.mark.parametrize(
    "text",
    [None, "", "0", "0x0", "x", "1 ", " 1", "-1", "+1", "010", "0x", "1/", "/1", "1/0x", "5/1", "1/0", "1/1/1",
     "0x100000000", "4294967296", "99999999999999999999999", "1/4294967296", "0X1", "1e3"],
)  # fmt: skip
def test_preload_invalid_mark_ends_program_at_start(folder: Path, client: Path, text: str | None) -> None:
    for optional in ("0", "1"):
        done = run(client, environment(folder, text, LIBPACKETMARK_OPTIONAL=optional))
        assert (done.returncode, done.stdout) == (CONFIG, "")
        assert done.stderr.startswith("libpacketmark: client: LIBPACKETMARK_MARK is ")
        assert NEEDS in done.stderr
        assert done.stderr.count("\n") == 1


def test_preload_optional_other_than_0_and_1_is_refused(folder: Path, client: Path) -> None:
    done = run(client, environment(folder, "1", LIBPACKETMARK_OPTIONAL="yes"))
    assert (done.returncode, done.stdout, "it is 0 or 1" in done.stderr) == (CONFIG, "", True)
    assert run(client, environment(folder, "1", LIBPACKETMARK_OPTIONAL="")).stdout.split() == ["1"] * FOUR


def test_preload_long_value_is_cut_in_message(folder: Path, client: Path) -> None:
    done = run(client, environment(folder, "9" * 100000))
    assert (done.returncode, len(done.stderr) <= 400) == (CONFIG, True)


@pytest.mark.parametrize("mark", ["1", "0x1/0x1"])
def test_preload_forbidden_mark_ends_program(folder: Path, client: Path, mark: str) -> None:
    assert run(client, {}, **NOBODY).stdout.split() == ["0"] * FOUR, "the control: sockets it may have"
    done = run(client, environment(folder, mark), **NOBODY)
    assert (done.returncode, done.stdout) == (NOPERM, "")
    assert "CAP_NET_RAW" in done.stderr
    assert done.stderr.count("\n") == 1


def test_preload_unprivileged_user_marks_with_capability(folder: Path, client: Path) -> None:
    def become(keeping: bool) -> None:
        with capability.keep_capability(capability.cap_for_so_mark()) if keeping else contextlib.nullcontext():
            os.setresuid(65534, 65534, 65534)

    done = run(client, environment(folder, "1"), preexec_fn=lambda: become(True))
    assert (done.stdout.split(), done.stderr) == (["1"] * FOUR, "")
    assert run(client, environment(folder, "1"), preexec_fn=lambda: become(False)).returncode == NOPERM, "the control"
    command = ["grep", "-h", "^Cap[PEA]", "/proc/self/status"]
    held = subprocess.run(command, preexec_fn=lambda: become(True), capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in held.splitlines()} == {f"{1 << capability.cap_for_so_mark():016x}"}


def test_preload_optional_without_capability_warns_once(folder: Path, client: Path) -> None:
    done = run(client, environment(folder, "1", LIBPACKETMARK_OPTIONAL="1"), **NOBODY)
    assert (done.returncode, done.stdout.split()) == (0, ["0"] * FOUR)
    assert done.stderr.count("goes on without the mark") == 1


def test_preload_daemon_without_stderr_writes_to_syslog(folder: Path, client: Path) -> None:
    with Namespace("log") as space:
        log = syslog_listener.listen(space)
        space.run([str(client)], env=environment(folder, "1"))
        space.run([str(client)], env=environment(folder, "x"), check=False)
        space.run([str(client)], env=environment(folder, "1"), uid=65534, check=False)
        wait_until(lambda: log().count("\n") == 2, 5, "two lines")
        no_mark, refused = log().splitlines()
    assert no_mark.startswith("<27>libpacketmark: client: LIBPACKETMARK_MARK is x;")
    assert refused.startswith("<27>libpacketmark: client: the kernel does not let it mark its sockets")


# Programs that it cannot reach


GO_NOTE = r"""
__asm__(".pushsection .note.go.buildid,\"a\",@note\n.long 4, 4, 4\n.asciz \"Go\\0\"\n.ascii \"abcd\"\n.popsection");
"""
GO_INFO = r"""
__attribute__((used)) static const char info[] = "\xff Go buildinf:\10\2";
"""


def static(folder: Path) -> Path:
    return build(folder, CLIENT, "-static", name="static")


def static_pie(folder: Path) -> Path:
    return build(folder, CLIENT, "-static-pie", name="static-pie")


def go(folder: Path) -> Path:
    return build(folder, CLIENT + GO_NOTE, "-DRAW", name="go")


def go_without_its_note(folder: Path) -> Path:
    return build(folder, CLIENT + GO_INFO, "-DRAW", "-s", name="go-stripped")


def setuid(folder: Path) -> Path:
    return _copy(folder, "setuid", 0o4755)


def setgid(folder: Path) -> Path:
    return _copy(folder, "setgid", 0o2755)


def capable(folder: Path) -> Path:
    program = _copy(folder, "capable", 0o755)
    # struct vfs_cap_data, revision 2: CAP_NET_RAW permitted, and effective.
    os.setxattr(program, "security.capability", bytes.fromhex("01000002 00200000 00000000 00000000 00000000"))
    return program


def _copy(folder: Path, name: str, mode: int) -> Path:
    program = folder / name
    program.write_bytes(build(folder, CLIENT, name="copied").read_bytes())
    program.chmod(mode)
    return program


REASONS = {
    static: "statically",
    static_pie: "statically",
    go: "Go compiler",
    go_without_its_note: "Go compiler",
    setuid: "setuid",
    setgid: "setgid",
    capable: "getcap",
}


@pytest.mark.parametrize("make", REASONS, ids=lambda make: make.__name__)
def test_refusal_reason_names_program_out_of_reach(folder: Path, client: Path, make) -> None:  # type: ignore[no-untyped-def]
    program = make(folder)
    assert REASONS[make] in str(preload.refusal_reason(program))
    done = run(program, environment(folder, "1"), **NOBODY)
    assert done.stdout.split() == ["0"] * FOUR, "the control: it really has sockets without the mark"
    assert preload.refusal_reason(client) is None
    script = folder / "script"
    script.write_text(f"#!{program} -x\n")
    assert REASONS[make] in str(preload.refusal_reason(script))
    assert str(preload.refusal_reason(script)).startswith(f"{script} is run by {program}, which ")


def test_refusal_reason_of_raw_system_calls_is_none(folder: Path) -> None:
    """A program that calls the kernel itself is not refused; its packets are the guard's (tests/leaks)."""
    raw = build(folder, CLIENT, "-DRAW", name="raw")
    assert preload.refusal_reason(raw) is None
    assert run(raw, environment(folder, "1")).stdout.split() == ["0"] * FOUR


def test_refusal_reason_names_other_machine(folder: Path, client: Path) -> None:
    other = folder / "other"
    head = bytearray(client.read_bytes())
    head[18] = 3  # e_machine: EM_386
    other.write_bytes(head)
    assert "another machine" in str(preload.refusal_reason(other))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a program"),
        (b"text\n", "not a program"),
        (b"\x7fELF", "not a program"),
        (b"\x7fELF\2\1\1" + bytes(70), "linked statically"),
        (b"\x7fELF\7\7\7" + bytes(70), "not a program"),
        (b"#!\n", "not a program"),
        (b"#!/nonexistent/sh\n", "which cannot be read: No such file"),
        (b"#!/usr/bin/env nonesuch\n", "not a program"),
    ],
)
def test_refusal_reason_names_file_that_is_not_a_program(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    assert words in str(preload.refusal_reason(file))


def test_refusal_reason_follows_script_interpreter(tmp_path: Path, client: Path) -> None:
    file = tmp_path / "script"
    for line in (
        f"#!{client}",
        "#! /usr/bin/env sh -e",
        "#!/usr/bin/env -S A=1 sh",
        "#!/usr/bin/env -u X sh",
        "#!/bin/sh",
    ):
        file.write_text(f"{line}\n")
        assert preload.refusal_reason(file) is None, line
    file.write_text(f"#!{file}\n")
    assert "too many times" in str(preload.refusal_reason(file))
    assert "No such file" in str(preload.refusal_reason(tmp_path / "nonexistent"))
    assert "Is a directory" in str(preload.refusal_reason(tmp_path))


def test_refusal_reason_names_unreadable_library(folder: Path, client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    shutil.copy(preload.LIBRARY, closed)
    monkeypatch.setattr(preload, "LIBRARY", closed / "libpacketmark.so")
    assert "may not read" in str(preload.refusal_reason(client, 65534))
    with pytest.raises(Unavailable, match="may not read"):
        preload.preload_environment(Mark(1, 1), {}, 65534)
    assert preload.refusal_reason(client, 0) is None
    done = run(client, environment(closed, "1"), **NOBODY)
    assert done.stdout.split() == ["0"] * FOUR, "the control: ld.so leaves it out"
    monkeypatch.setattr(preload, "LIBRARY", folder / "libpacketmark.so")
    assert preload.refusal_reason(client, 65534) is None


# Without a compiler or a library


def test_preload_environment_without_library_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "LIBRARY", tmp_path / "libpacketmark.so")
    with pytest.raises(Unavailable, match=r"no C compiler .*gcc and libc6-dev"):
        preload.preload_environment(Mark(1, 1), {})
    folder = tmp_path / "with space"
    folder.mkdir()
    (folder / "libpacketmark.so").write_bytes(b"")
    monkeypatch.setattr(preload, "LIBRARY", folder / "libpacketmark.so")
    with pytest.raises(Unavailable, match="LD_PRELOAD cannot contain"):
        preload.preload_environment(Mark(1, 1), {})


def test_library_build_without_compiler_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "libpacketmark.so"
    for command, words in (("nonesuch", "no C compiler"), ("false", "the C compiler failed")):
        monkeypatch.setenv("CC", command)
        with pytest.raises(hatch_build.NotBuilt, match=words):
            hatch_build.build(target)
    assert list(tmp_path.iterdir()) == []


def test_preload_name_lookup_of_libc_is_unmarked(folder: Path) -> None:
    """Reason why DNS queries go to the resolver by group and not by mark."""
    source = r"""
    #include <netdb.h>
    #include <sys/socket.h>
    int main(void)
    {
        struct addrinfo *found;
        getaddrinfo("who.example", "9", 0, &found);
        return 0;
    }
    """
    program = build(folder, source, name="names")
    counting = "\n".join(
        f"udp dport {port} meta mark {mark} counter name m{port}-{mark}" for port in (53, 9) for mark in (0, 7)
    )
    named = "\n".join(f"counter m{port}-{mark} {{ }}" for port in (53, 9) for mark in (0, 7))
    with Namespace("names", {"resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"}) as space:
        space.nft(f"table inet t {{\n{named}\nchain c {{\ntype filter hook output priority 0;\n{counting}\n}}\n}}\n")
        space.run([str(program)], env=environment(folder, "7"))
        seen = counters(space)
        assert (seen["m53-0"] > 0, seen["m53-7"]) == (True, 0)
        marked = {"LIBPACKETMARK_MARK": "7", **environment(folder, "7")}
        space.run([str(build(folder, CLIENT)), "127.0.0.1", "::1", "x"], env=marked)
        seen = counters(space)
        assert (seen["m9-7"], seen["m9-0"]) == (2, 0), "the control: its own sockets are marked"
