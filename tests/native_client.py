"""C program that opens UDP sockets in ways that no preloaded library can intercept."""

import shutil
import subprocess
from pathlib import Path

import pytest

HOWS = ("libc", "syscall", "io_uring")

# Arguments: HOW PORT PAYLOAD ADDRESS ... For each address one line: the socket's mark, and "sent" or an errno.
_SOURCE = r"""
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int by_ring(int domain)
{
    struct io_uring_params p = {0};
    int ring = syscall(SYS_io_uring_setup, 1, &p);
    if (ring < 0)
        return -1;
    char *sq = mmap(0, p.sq_off.array + p.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    char *cq = mmap(0, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED,
                    ring, IORING_OFF_CQ_RING);
    struct io_uring_sqe *sqe = mmap(0, sizeof *sqe, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || sqe == MAP_FAILED)
        return -1;
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = IORING_OP_SOCKET;
    sqe->fd = domain;
    sqe->off = SOCK_DGRAM;
    *(unsigned *)(sq + p.sq_off.array) = 0;
    __atomic_store_n((unsigned *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0)
        return -1;
    int made = ((struct io_uring_cqe *)(cq + p.cq_off.cqes))->res;
    if (made < 0)
        errno = -made;
    return made < 0 ? -1 : made;
}

static int opened(const char *how, int domain)
{
    if (!strcmp(how, "io_uring"))
        return by_ring(domain);
    if (!strcmp(how, "syscall"))
        return syscall(SYS_socket, domain, SOCK_DGRAM, 0);
    return socket(domain, SOCK_DGRAM, 0);
}

int main(int argc, char **argv)
{
    for (int i = 4; i < argc; i++) {
        struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
        struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(argv[2]))};
        int is_six = inet_pton(AF_INET6, argv[i], &six.sin6_addr) == 1;
        inet_pton(AF_INET, argv[i], &four.sin_addr);
        int one = opened(argv[1], is_six ? AF_INET6 : AF_INET), mark = -1;
        if (one < 0) {
            printf("no %s\n", strerrorname_np(errno));
            continue;
        }
        socklen_t size = sizeof mark;
        getsockopt(one, SOL_SOCKET, SO_MARK, &mark, &size);
        struct sockaddr *to = is_six ? (struct sockaddr *)&six : (struct sockaddr *)&four;
        int sent = sendto(one, argv[3], strlen(argv[3]), 0, to, is_six ? sizeof six : sizeof four) >= 0;
        printf("%d %s\n", mark, sent ? "sent" : strerrorname_np(errno));
    }
    return 0;
}
"""


def build(folder: Path) -> Path:
    """Return the path of the program, linked statically; skip the test without a compiler for it."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (apt-get install gcc libc6-dev)")
    source, made = folder / "opens.c", folder / "opens"
    source.write_text(_SOURCE)
    command = [compiler, "-static", "-O1", "-D_GNU_SOURCE", "-o", str(made), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(command[:2])} does not work here: {done.stderr[-300:]}")
    return made
