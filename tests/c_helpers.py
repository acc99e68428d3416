"""C programs for single tests, such as static or setuid ones."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Opens sockets, prints the mark of each, and sends a datagram from the first of each family if told where to.
CLIENT = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef RAW
#define socket(domain, type, protocol) (int)syscall(SYS_socket, domain, type, protocol)
#endif

static int mark_of(int fd)
{
    int mark = -1;
    socklen_t size = sizeof(mark);
    getsockopt(fd, SOL_SOCKET, SO_MARK, &mark, &size);
    return mark;
}

static void send_to(int family, int fd, const char *address, const char *words)
{
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(9)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(9)};
    if (family == AF_INET && inet_pton(AF_INET, address, &four.sin_addr) == 1)
        sendto(fd, words, strlen(words), 0, (void *)&four, sizeof(four));
    if (family == AF_INET6 && inet_pton(AF_INET6, address, &six.sin6_addr) == 1)
        sendto(fd, words, strlen(words), 0, (void *)&six, sizeof(six));
}

int main(int count, char **words)
{
    static const int families[] = {AF_INET, AF_INET6}, kinds[] = {SOCK_DGRAM, SOCK_STREAM | SOCK_CLOEXEC};
    for (int family = 0; family < 2; family++)
        for (int kind = 0; kind < 2; kind++) {
            int fd = socket(families[family], kinds[kind], 0);
            printf("%d\n", mark_of(fd));
            if (!kind && count > 2)
                send_to(families[family], fd, words[1 + family], words[3]);
        }
    return fflush(stdout);
}
"""
FOUR = 4  # the sockets of CLIENT


def compiler(name: str = "gcc") -> str:
    """Return the path of a compiler; skip the test without one."""
    found = shutil.which(name)
    if found is None:
        package = {"gcc": "gcc libc6-dev", "musl-gcc": "musl-tools"}[name]
        pytest.skip(f"{name} is not installed, so the test's program can't be made (apt-get install {package})")
    return found


def build(folder: Path, source: str, *flags: str, name: str = "client", by: str = "gcc") -> Path:
    """Compile a program into the directory. Raises: CalledProcessError, with the compiler's output as a note."""
    target = folder / name
    command = [compiler(by), "-std=gnu99", "-Wall", "-Werror", "-x", "c", "-", "-o", str(target), *flags]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if done.returncode:
        error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        error.add_note(done.stderr)
        raise error
    return target


@contextmanager
def public_folder() -> Iterator[Path]:
    """Yield a directory that every user may enter; pytest's own ones are private."""
    with tempfile.TemporaryDirectory(prefix="nftpolicy-test-", dir="/var/tmp") as name:
        os.chmod(name, 0o755)  # noqa: PTH101
        yield Path(name)
