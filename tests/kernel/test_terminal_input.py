"""No program that `run` starts can type into its terminal, by any of the ways to call ioctl(2)."""

import os
import platform
import pty
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nftpolicy.kernel import seccomp_filter, terminal_input
from nftpolicy.kernel.architecture import require_architecture, this_architecture
from nftpolicy.kernel.errors import Unavailable
from tests.c_helpers import build
from tests.lab.limits import limit

# Types one character into its controlling terminal: by the call of its word size, with bits above
# the low 32 of the request, by the number of the x32 ABI, or by the 32-bit entry of x86. Prints
# errno, or 0; then whether another request still works.
SOURCE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

static long call(const char *way, char *character)
{
    if (!strcmp(way, "high"))
        return syscall(SYS_ioctl, 0, TIOCSTI | 0x100000000UL, character);
    if (!strcmp(way, "x32"))
        return syscall(0x40000000 | 514, 0, (long)TIOCSTI, character);
#ifdef __x86_64__
    if (!strcmp(way, "int80")) {
        long result;
        asm volatile("int $0x80" : "=a"(result) : "a"(54L), "b"(0L), "c"((long)TIOCSTI), "d"(character)
                     : "memory", "r8", "r9", "r10", "r11");
        errno = -result;
        return result < 0 ? -1 : 0;
    }
#endif
    if (!strcmp(way, "console")) {
        char paste = 3;
        return ioctl(0, TIOCLINUX, &paste);
    }
    return ioctl(0, TIOCSTI, character);
}

int main(int count, char **words)
{
    char *character = "x";
    struct winsize size;
#ifdef __x86_64__
    character = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    *character = 'x';
#endif
    long result = call(words[1], character);
    return printf("%d %d\n", result < 0 ? errno : 0, ioctl(0, TIOCGWINSZ, &size)) < 0;
}
"""
EPERM = 1
WAYS = ("plain", "high", "x32", "int80", "console")


@pytest.fixture(scope="module")
def typing_program() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # for the caller without capabilities
        program = build(Path(folder), SOURCE)
        program.chmod(0o755)
        yield program


def errno_of(program: Path, way: str, before: Callable[[], object]) -> tuple[int, int]:
    """Run the program with a terminal; return its errno and the result of another request."""
    main, terminal = pty.openpty()

    def prepare() -> None:
        os.login_tty(terminal)
        before()

    try:
        done = subprocess.run([program, way], stdout=subprocess.PIPE, text=True, check=True, timeout=limit(20),
                              preexec_fn=lambda: _with_stdout(prepare))  # fmt: skip
    finally:
        os.close(main)
        os.close(terminal)
    first, second = map(int, done.stdout.split())
    return first, second


def _with_stdout(prepare: Callable[[], None]) -> None:
    """Keep the pipe as standard output, which login_tty() replaces."""
    pipe = os.dup(1)
    prepare()
    os.dup2(pipe, 1)


@pytest.mark.parametrize("way", WAYS)
def test_terminal_input_is_refused_by_every_call(typing_program: Path, way: str) -> None:
    if this_architecture() is None:
        pytest.skip(f"no filter for {platform.machine()}")
    if way in ("x32", "int80") and platform.machine() != "x86_64":
        pytest.skip("a call of x86")
    assert errno_of(typing_program, way, terminal_input.refuse_terminal_input) == (EPERM, 0)
    control, other = errno_of(typing_program, way, lambda: None)
    assert control != EPERM, "the control: without the filter the kernel gives another answer"
    assert other == 0


def test_terminal_input_without_capabilities_needs_no_new_privs(typing_program: Path) -> None:
    """An unprivileged caller may install the filter after it gave up new privileges."""

    def prepare() -> None:
        os.setresuid(65534, 65534, 65534)
        seccomp_filter.set_no_new_privs()
        terminal_input.refuse_terminal_input()

    assert errno_of(typing_program, "plain", prepare) == (EPERM, 0)


@pytest.mark.parametrize("reason", ["another architecture", "no right to install a filter"])
def test_terminal_is_given_up_without_filter(
    typing_program: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    if reason == "another architecture":
        monkeypatch.setattr(platform, "machine", lambda: "mips")
        with pytest.raises(Unavailable):
            require_architecture("marking")
    else:
        monkeypatch.setattr(terminal_input, "install_filter", refuse)

    def prepare() -> None:
        terminal_input.refuse_terminal_input()
        with pytest.raises(OSError, match="No such device"):
            os.open("/dev/tty", os.O_RDWR)

    assert errno_of(typing_program, "high", prepare)[1] == 0
