"""Netlink sockets: requests, interrupted dumps, overflows, attributes."""

import errno
import itertools
import socket
import struct
from contextlib import nullcontext

import pytest

from nftpolicy.kernel.errors import DumpInterrupted, RulesetChanging, RulesetUnreadable, Unavailable
from nftpolicy.kernel.inotify import WatchChanges
from nftpolicy.kernel.netlink import nft_generation, nft_ruleset, rtnetlink
from nftpolicy.kernel.netlink import socket as netlink_socket
from nftpolicy.kernel.netlink.attributes import attribute, attributes, decode_text, encode_text, ip_text
from nftpolicy.kernel.netlink.constants import (
    NFGENMSG,
    NFT_MSG_NEWSETELEM,
    NFTA_SET_ELEM_KEY,
    NFTA_SET_ELEM_LIST_ELEMENTS,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSGHDR,
)
from nftpolicy.kernel.netlink.monitor import Monitor
from nftpolicy.kernel.netlink.socket import (
    DUMP_TRIES,
    NetlinkSocket,
    pending_notifications,
    repeat_until_consistent,
    split_messages,
)
from nftpolicy.netstate.formats.nft_bytecode.elements import decode_elements

KIND = 7
CLEAN, INTERRUPTED = 0, NLM_F_DUMP_INTR


def message(kind: int, body: bytes, flags: int = 0, sequence: int = 1) -> bytes:
    size = NLMSGHDR.size + len(body)
    return NLMSGHDR.pack(size, kind, flags, sequence, 0) + body + bytes(-size % 4)


def code(number: int) -> bytes:
    return struct.pack("=i", -number)


class FakeSocket:
    """Answers the dumps one after the other; the last answer repeats."""

    def __init__(self, *answers: list[tuple[int, bytes, int]]) -> None:
        self.answers = list(answers)
        self.requests = 0
        self._pending: list[bytes] = []

    def send(self, request: bytes) -> None:
        _, _, _, sequence, _ = NLMSGHDR.unpack_from(request)
        answer = self.answers[min(self.requests, len(self.answers) - 1)]
        self.requests += 1
        # One datagram a message, with a message of an earlier request before the last.
        self._pending = [message(kind, body, flags, sequence) for kind, body, flags in answer]
        self._pending.insert(-1, message(KIND, b"old!", 0, sequence - 1))

    def recv(self, size: int) -> bytes:
        return self._pending.pop(0)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the list of pauses in seconds, which are recorded instead of slept."""
    slept: list[float] = []
    monkeypatch.setattr(netlink_socket.time, "sleep", slept.append)
    return slept


def netlink(*answers: list[tuple[int, bytes, int]]) -> tuple[NetlinkSocket, FakeSocket]:
    sock, fake = NetlinkSocket.__new__(NetlinkSocket), FakeSocket(*answers)
    sock._socket, sock._sequence = fake, 0  # type: ignore[assignment]
    return sock, fake


def dump(flags: int, *bodies: bytes, status: int = 0) -> list[tuple[int, bytes, int]]:
    return [*((KIND, body, flags) for body in bodies), (NLMSG_DONE, code(status), 0)]


def bodies(messages: list[netlink_socket.Message]) -> list[bytes]:
    return [raw[start:end] for raw, start, end in messages]


def test_dump_returns_all_messages() -> None:
    sock, fake = netlink(dump(CLEAN, b"one!", b"two!"))
    assert bodies(sock.dump(KIND, b"")) == [b"one!", b"two!"]
    assert fake.requests == 1


def test_interrupted_dump_is_repeated() -> None:
    sock, fake = netlink(dump(INTERRUPTED, b"part"), dump(INTERRUPTED, b"part"), dump(CLEAN, b"all1", b"all2"))
    assert bodies(sock.dump(KIND, b"")) == [b"all1", b"all2"]
    assert fake.requests == 3


def test_dump_interrupted_every_time_raises(pauses: list[float]) -> None:
    sock, fake = netlink(dump(INTERRUPTED, b"part"))
    with pytest.raises(DumpInterrupted) as raised:
        sock.dump(KIND, b"")
    assert fake.requests == DUMP_TRIES
    assert str(raised.value) == (
        "changes interrupted the netlink dump (message type 7) 20 times in a row; try again when the system is quieter"
    )
    assert pauses[:3] == [0.001, 0.002, 0.004]
    assert 0.5 < sum(pauses) < 1.5


def test_interruption_flag_of_done_message_counts() -> None:
    sock, _ = netlink([(KIND, b"part", CLEAN), (NLMSG_DONE, code(0), INTERRUPTED)])
    with pytest.raises(DumpInterrupted):
        sock.dump(KIND, b"")


def test_dump_interrupted_is_unavailable_and_os_error() -> None:
    error = DumpInterrupted("message type 7", 20)
    assert isinstance(error, Unavailable) and isinstance(error, OSError)
    assert error.errno == errno.EINTR


@pytest.mark.parametrize("last", [NLMSG_ERROR, NLMSG_DONE])
def test_error_of_dump_is_raised(last: int) -> None:
    sock, _ = netlink([(KIND, b"part", CLEAN), (last, code(errno.ENOENT), CLEAN)])
    with pytest.raises(FileNotFoundError):
        sock.dump(KIND, b"")


def test_stream_yields_messages_before_the_end() -> None:
    sock, _ = netlink(dump(CLEAN, b"one!", b"two!"), dump(INTERRUPTED, b"part"))
    messages = sock.stream(KIND, b"")
    assert bodies([next(messages)]) == [b"one!"]
    assert sock._socket.recv(0)[16:] == b"two!"  # still to come
    interrupted = sock.stream(KIND, b"")
    assert bodies([next(interrupted)]) == [b"part"]
    with pytest.raises(InterruptedError):
        next(interrupted)


@pytest.mark.parametrize("error", [FileNotFoundError(), InterruptedError(), RulesetUnreadable("a rule of no table")])
def test_read_consistent_repeats_after_transactions(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    generations = [1, 2, 2, 2]
    monkeypatch.setattr(nft_generation, "generation", lambda: generations.pop(0))
    results: list[str | Exception] = [error, "whole"]

    def read() -> str:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    assert nft_generation.read_consistent(read) == "whole"
    generations[:], results[:] = [1, 1], [error]
    with pytest.raises(type(error)):
        nft_generation.read_consistent(read)


def test_read_consistent_returns_two_equal_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions of another program, one after the other, do not concern what is read."""
    generations = itertools.count()
    monkeypatch.setattr(nft_generation, "generation", lambda: next(generations))
    results = iter(["part", "whole", "whole"])
    assert nft_generation.read_consistent(lambda: next(results), accept_equal=True) == "whole"
    with pytest.raises(RulesetChanging):
        nft_generation.read_consistent(lambda: next(generations), accept_equal=True)


def test_equal_reads_of_a_changing_ruleset_are_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rulesets that alternate can be read as the same mixture twice."""
    generations = itertools.count()
    monkeypatch.setattr(nft_generation, "generation", lambda: next(generations))
    with pytest.raises(RulesetChanging):
        nft_generation.read_consistent(lambda: "mixture")
    monkeypatch.setattr(nft_ruleset, "_dumps", lambda _: nullcontext("mixture"))
    monkeypatch.setattr(nft_ruleset, "decode_ruleset", lambda messages: (messages,))
    assert nft_ruleset.read_tables("nftpolicy") == ("mixture",)
    with pytest.raises(RulesetChanging):
        nft_ruleset.read_tables()


def test_query_returns_its_answer_or_raises() -> None:
    sock, _ = netlink([(KIND, b"answer!!", 0)], [(NLMSG_ERROR, code(errno.EPERM), 0)])
    assert bodies([sock.query(KIND, b"")]) == [b"answer!!"]
    with pytest.raises(PermissionError):
        sock.query(KIND, b"")


@pytest.mark.parametrize("number", [0, errno.EEXIST])
def test_change_returns_the_errno_of_its_acknowledgement(number: int) -> None:
    sock, _ = netlink([(KIND, b"echo", 0), (NLMSG_ERROR, code(number), 0)])
    assert sock.change(KIND, b"") == number


def test_repeat_until_consistent_is_bounded() -> None:
    results = [None, None, "done"]
    assert repeat_until_consistent(lambda: results.pop(0), "test") == "done"
    with pytest.raises(DumpInterrupted, match="elements"):
        repeat_until_consistent(lambda: None, "elements")


def element(key: bytes) -> bytes:
    return attribute(1, attribute(NFTA_SET_ELEM_KEY, attribute(1, key)))


def elements_dump(*keys: bytes, flags: int = 0) -> list[tuple[int, bytes, int]]:
    body = NFGENMSG.pack(1, 0, 0) + attribute(NFTA_SET_ELEM_LIST_ELEMENTS, b"".join(element(key) for key in keys))
    return [(NFT_MSG_NEWSETELEM, body, flags), (NLMSG_DONE, code(0), 0)]


def test_dump_with_duplicate_elements_is_repeated() -> None:
    first, second = struct.pack("=I", 800), struct.pack("=I", 801)
    sock, fake = netlink(
        elements_dump(first, first), elements_dump(first, flags=INTERRUPTED), elements_dump(first, second)
    )
    assert decode_elements(nft_ruleset.read_elements(sock, (1, "t", "s"))).keys == (first, second)
    assert fake.requests == 3


def test_dump_with_duplicate_elements_every_time_raises() -> None:
    key = struct.pack("=I", 800)
    sock, _ = netlink(elements_dump(key, key))
    with pytest.raises(DumpInterrupted, match="elements of set t s"):
        nft_ruleset.read_elements(sock, (1, "t", "s"))


def test_overflow_is_reported_and_reading_continues() -> None:
    answers = [b"first", OSError(errno.ENOBUFS, "overflow"), b"second", BlockingIOError()]

    class Overflowing:
        def recv(self, size: int) -> bytes:
            answer = answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return answer

    assert list(pending_notifications(Overflowing(), 9)) == [b"first", None, b"second"]  # type: ignore[arg-type]


def test_monitor_lists_links_again_after_overflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Watch:
        def read(self) -> WatchChanges:
            return WatchChanges(False, False)

    class Withdrawals:
        def read(self) -> set[tuple[str, str]]:
            return set()

    class Datagrams:
        def __init__(self, *answers: OSError) -> None:
            self.answers = list(answers)

        def recv(self, size: int) -> bytes:
            raise self.answers.pop(0) if self.answers else BlockingIOError()

    dumps: list[object] = [DumpInterrupted("links", 20), [], DumpInterrupted("never", 20)]

    def dump_objects(*_: object) -> object:
        answer = dumps.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(rtnetlink, "dump_objects", dump_objects)
    sock = Monitor.__new__(Monitor)
    sock._files, sock._links, sock._touched, sock._outdated = Watch(), {7: ("old", 0, 0)}, False, False  # type: ignore[assignment]
    sock._nft, sock._rtnetlink = Datagrams(), Datagrams(OSError(errno.ENOBUFS, "overflow"))  # type: ignore[assignment]
    sock._news = Datagrams()  # type: ignore[assignment]
    sock._withdrawals = Withdrawals()  # type: ignore[assignment]
    first = sock.read()
    assert (first.overflowed, first.links, sock._links) == (True, True, {7: ("old", 0, 0)})
    second = sock.read()
    assert (second.overflowed, second.links, sock._links) == (False, True, {})
    assert not sock.read()


def test_pending_notifications_are_limited() -> None:
    class Endless:
        def recv(self, size: int) -> bytes:
            return b"more"

    assert len(list(pending_notifications(Endless(), 5))) == 5  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_truncated_messages_and_attributes_end_the_loop(cut: int) -> None:
    raw = message(KIND, attribute(1, b"abc") + attribute(2, b""))[:cut]
    assert len(list(split_messages(raw))) <= 1
    assert len(list(attributes(raw, 16, len(raw)))) <= 2


def test_attributes_round_trip() -> None:
    raw = attribute(1, b"abc\0") + attribute(0x8000 | 2, b"x")
    assert list(attributes(raw, 0, len(raw))) == [(1, b"abc\0"), (2, b"x")]
    assert list(attributes(struct.pack("=HH", 0, 1), 0, 4)) == []
    assert (decode_text(b"abc\0"), decode_text(None)) == ("abc", "")
    assert encode_text(decode_text(b"\xff\0")) == b"\xff\0"
    assert (ip_text(socket.inet_aton("192.0.2.1")), ip_text(bytes(15) + b"\1")) == ("192.0.2.1", "::1")
