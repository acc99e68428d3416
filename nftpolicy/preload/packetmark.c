/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * libpacketmark.so: LD_PRELOAD=libpacketmark.so LIBPACKETMARK_MARK=1 CMD
 *
 * Each IP socket that CMD opens by socket(2) of the C library has the mark before CMD gets it. CMD never
 * gets an IP socket without the mark: if the kernel refuses the mark, the program ends at once and reports
 * the reason. With LIBPACKETMARK_OPTIONAL=1 it continues without the mark instead.
 *
 * The mark is VALUE or VALUE/MASK, each decimal or hexadecimal with 0x. Bits outside the mask keep the values
 * that, for instance, a program on the cgroup has set. Sockets of other families stay unmarked, as do those of
 * socketpair(2), which opens no IP sockets. Sockets of accept(2) inherit the mark of the listener.
 *
 * Nothing is allocated. Threads share only `own`; two threads that initialize it at once write the same values.
 */
#define _GNU_SOURCE /* RTLD_NEXT, program_invocation_short_name */
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

/* Exit statuses of sysexits.h; a service manager shows their names. */
enum { NOPERM = 77, CONFIG = 78 };

#define NEEDS "a mark is VALUE or VALUE/MASK, such as 0x1/0x1: the value is not 0 and lies within the mask"

static struct {
	int ready, reported, optional;
	uint32_t value, mask;
	int (*make)(int, int, int);
} own;

static size_t append(char *line, size_t at, size_t size, const char *text)
{
	while (*text && at < size - 1)
		line[at++] = *text++;
	return at;
}

/* Write to the system log (RFC 3164: daemon, error): many daemons redirect their standard error to /dev/null. */
static void write_log(const char *line, size_t length)
{
	struct sockaddr_un log = {.sun_family = AF_UNIX, .sun_path = "/dev/log"};
	struct iovec parts[] = {{"<27>", 4}, {(void *)line, length}};
	struct msghdr message = {.msg_name = &log, .msg_namelen = sizeof(log), .msg_iov = parts, .msg_iovlen = 2};
	int fd = own.make ? own.make(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) : -1;

	if (fd < 0)
		return;
	sendmsg(fd, &message, MSG_NOSIGNAL);
	close(fd);
}

/* Report one line on standard error, by one write(2), and in the log. */
static void report(const char *first, const char *second, const char *third)
{
	char line[400];
	size_t at = append(line, 0, sizeof(line), "libpacketmark: ");

	at = append(line, at, sizeof(line), program_invocation_short_name);
	at = append(line, at, sizeof(line), ": ");
	at = append(line, at, sizeof(line), first);
	at = append(line, at, sizeof(line), second);
	at = append(line, at, sizeof(line), third);
	write_log(line, at);
	line[at++] = '\n';
	while (write(STDERR_FILENO, line, at) < 0 && errno == EINTR)
		;
}

/* Read the number at the begin of the text; return its end, or NULL if it is no number of 32 bits. */
static const char *number(const char *text, uint32_t *result)
{
	int hex = text[0] == '0' && text[1] == 'x';
	uint64_t sum = 0;
	const char *start = text += hex ? 2 : 0;

	for (; *text; text++) {
		unsigned digit = *text >= '0' && *text <= '9'   ? (unsigned)(*text - '0')
			       : *text >= 'a' && *text <= 'f' ? (unsigned)(*text - 'a') + 10
			       : *text >= 'A' && *text <= 'F' ? (unsigned)(*text - 'A') + 10
							      : 16;
		if (digit >= (hex ? 16u : 10u))
			break;
		sum = sum * (hex ? 16 : 10) + digit;
		if (sum > UINT32_MAX)
			return NULL;
	}
	/* 010 is ambiguous: decimal 10, or octal 8. */
	if (text == start || (!hex && *start == '0' && text != start + 1))
		return NULL;
	*result = (uint32_t)sum;
	return text;
}

static int read_mark(const char *text, uint32_t *value, uint32_t *mask)
{
	*mask = UINT32_MAX;
	text = number(text, value);
	if (text && *text == '/')
		text = number(text + 1, mask);
	return text && !*text && *value && !(*value & ~*mask);
}

/* Read the environment. Two threads that do so at once write the same values. */
static void prepare(void)
{
	int before = errno;
	const char *mark = getenv("LIBPACKETMARK_MARK"), *optional = getenv("LIBPACKETMARK_OPTIONAL");
	void *next = dlsym(RTLD_NEXT, "socket");

	memcpy(&own.make, &next, sizeof(next)); /* ISO C cannot cast an object pointer to a function pointer */
	if (!mark || !read_mark(mark, &own.value, &own.mask)) {
		report("LIBPACKETMARK_MARK is ", mark ? mark : "missing", "; " NEEDS);
		_exit(CONFIG);
	}
	if (optional && *optional && strcmp(optional, "0") && strcmp(optional, "1")) {
		report("LIBPACKETMARK_OPTIONAL is ", optional, "; it is 0 or 1");
		_exit(CONFIG);
	}
	if (!next) {
		report("there is no socket() of the C library to be found", "", "");
		_exit(CONFIG);
	}
	own.optional = optional && *optional == '1';
	__atomic_store_n(&own.ready, 1, __ATOMIC_RELEASE);
	errno = before;
}

__attribute__((constructor)) static void start(void)
{
	prepare();
}

static int set_mark(int fd)
{
	uint32_t mark = 0;
	socklen_t size = sizeof(mark);

	if (own.mask != UINT32_MAX && getsockopt(fd, SOL_SOCKET, SO_MARK, &mark, &size))
		return -1;
	mark = (mark & ~own.mask) | own.value;
	return setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
}

static void handle_refusal(int fd)
{
	const char *why = errno == EPERM ? "the kernel does not let it mark its sockets: that takes CAP_NET_RAW, or "
					   "CAP_NET_ADMIN before Linux 5.17"
					 : "the kernel does not take a mark for its socket";

	if (!own.optional) {
		close(fd);
		report(why, "", "; ended, since nothing may leave without the mark");
		_exit(NOPERM);
	}
	if (!__atomic_exchange_n(&own.reported, 1, __ATOMIC_RELAXED))
		report(why, "", "; it goes on without the mark (LIBPACKETMARK_OPTIONAL=1)");
}

__attribute__((visibility("default"))) int socket(int domain, int type, int protocol)
{
	int fd, before;

	/* Constructors of other libraries may run before the one here. */
	if (!__atomic_load_n(&own.ready, __ATOMIC_ACQUIRE))
		prepare();
	fd = own.make(domain, type, protocol);
	if (fd < 0 || (domain != AF_INET && domain != AF_INET6))
		return fd;
	before = errno;
	if (set_mark(fd))
		handle_refusal(fd);
	errno = before;
	return fd;
}
