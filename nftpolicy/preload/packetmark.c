/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * libpacketmark.so: LD_PRELOAD=libpacketmark.so LIBPACKETMARK_MARK=1 CMD
 *
 * Every IP socket that CMD makes by socket(2) of the C library wears the mark before CMD gets it. The
 * promise is that no IP socket without the mark is handed out: where the kernel refuses the mark, the
 * program ends at once and says why. LIBPACKETMARK_OPTIONAL=1 has it go on without the mark instead.
 *
 * The mark is VALUE or VALUE/MASK, each decimal or hexadecimal with 0x. Bits outside the mask keep what
 * others, such as a program on the cgroup, have put there. Sockets of other families are left alone, and
 * so are socketpair(2), which makes no IP sockets, and accept(2), whose sockets wear the listener's mark.
 *
 * Nothing is allocated, and the only thing that threads share is read again where two of them come first.
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

/* sysexits.h; a service manager shows them by these names. */
enum { NOPERM = 77, CONFIG = 78 };

#define NEEDS "a mark is VALUE or VALUE/MASK, such as 0x1/0x1: the value is not 0 and lies within the mask"

static struct {
	int ready, told, optional;
	uint32_t value, mask;
	int (*make)(int, int, int);
} own;

static size_t append(char *line, size_t at, size_t size, const char *words)
{
	while (*words && at < size - 1)
		line[at++] = *words++;
	return at;
}

/* For the system's log (RFC 3164: daemon, error), since daemons send their standard error to /dev/null. */
static void log_too(const char *line, size_t length)
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

/* One line on standard error, by one write(2), and in the log. */
static void say(const char *first, const char *second, const char *third)
{
	char line[400];
	size_t at = append(line, 0, sizeof(line), "libpacketmark: ");

	at = append(line, at, sizeof(line), program_invocation_short_name);
	at = append(line, at, sizeof(line), ": ");
	at = append(line, at, sizeof(line), first);
	at = append(line, at, sizeof(line), second);
	at = append(line, at, sizeof(line), third);
	log_too(line, at);
	line[at++] = '\n';
	while (write(STDERR_FILENO, line, at) < 0 && errno == EINTR)
		;
}

/* The number that the text begins with, and where it ends; NULL if there is none of 32 bits. */
static const char *number(const char *text, uint32_t *found)
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
	/* 010 is ten to some and eight to others. */
	if (text == start || (!hex && *start == '0' && text != start + 1))
		return NULL;
	*found = (uint32_t)sum;
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

/* Read the environment. Two threads that come here at once write the same. */
static void prepare(void)
{
	int before = errno;
	const char *mark = getenv("LIBPACKETMARK_MARK"), *optional = getenv("LIBPACKETMARK_OPTIONAL");
	void *next = dlsym(RTLD_NEXT, "socket");

	memcpy(&own.make, &next, sizeof(next)); /* ISO C has no cast from one to the other */
	if (!mark || !read_mark(mark, &own.value, &own.mask)) {
		say("LIBPACKETMARK_MARK is ", mark ? mark : "missing", "; " NEEDS);
		_exit(CONFIG);
	}
	if (optional && *optional && strcmp(optional, "0") && strcmp(optional, "1")) {
		say("LIBPACKETMARK_OPTIONAL is ", optional, "; it is 0 or 1");
		_exit(CONFIG);
	}
	if (!next) {
		say("there is no socket() of the C library to be found", "", "");
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

static int put_on(int fd)
{
	uint32_t mark = 0;
	socklen_t size = sizeof(mark);

	if (own.mask != UINT32_MAX && getsockopt(fd, SOL_SOCKET, SO_MARK, &mark, &size))
		return -1;
	mark = (mark & ~own.mask) | own.value;
	return setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
}

static void refused(int fd)
{
	const char *why = errno == EPERM ? "the kernel does not let it mark its sockets: that takes CAP_NET_RAW, or "
					   "CAP_NET_ADMIN before Linux 5.17"
					 : "the kernel does not take a mark for its socket";

	if (!own.optional) {
		close(fd);
		say(why, "", "; ended, since nothing may leave without the mark");
		_exit(NOPERM);
	}
	if (!__atomic_exchange_n(&own.told, 1, __ATOMIC_RELAXED))
		say(why, "", "; it goes on without the mark (LIBPACKETMARK_OPTIONAL=1)");
}

__attribute__((visibility("default"))) int socket(int domain, int type, int protocol)
{
	int fd, before;

	/* Constructors of other libraries may come before ours. */
	if (!__atomic_load_n(&own.ready, __ATOMIC_ACQUIRE))
		prepare();
	fd = own.make(domain, type, protocol);
	if (fd < 0 || (domain != AF_INET && domain != AF_INET6))
		return fd;
	before = errno;
	if (put_on(fd))
		refused(fd);
	errno = before;
	return fd;
}
