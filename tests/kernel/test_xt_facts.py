"""Extensions of iptables-nft: the recorded bytes, and what the decoded statements do to packets on this kernel."""

import json
import os
import shlex
import shutil
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from nftpolicy.model.branching import explore_branches
from nftpolicy.model.nft.chains import Ruleset, evaluate_chain
from nftpolicy.model.packet import ICMP, UDP
from nftpolicy.model.packet_view import PacketView
from nftpolicy.netstate import nft
from nftpolicy.netstate.formats.xt_decode import decode_xt
from tests.lab.netns import search_path
from tests.xt_expressions import raw_rules, xt_expressions

pytestmark = pytest.mark.kernel

RECORDED = json.loads((Path(__file__).parent.parent / "fixtures" / "xt_iptables.json").read_text())
LOOPBACK = 0x7F000001
OBSERVER = """
table ip observer {
    set marks { type mark; size 99; flags dynamic; }
    set flows { type mark; size 99; flags dynamic; }
    chain c {
        type filter hook postrouting priority 300
        icmp type { echo-request, destination-unreachable } return
        add @marks { meta mark }
        add @flows { ct mark }
    }
}
"""


@pytest.fixture(autouse=True)
def iptables() -> None:
    if not shutil.which("iptables-nft", path=search_path()):
        pytest.skip("iptables-nft is not installed")


def load(program: str, rule: str) -> str:
    """Add a rule in this network namespace; return the error, "" without one."""
    done = subprocess.run([program, *shlex.split(rule)], capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


def test_xt_bytes_of_this_kernel_equal_recorded_bytes(node) -> None:
    def run():
        differences, compared = [], 0
        for each in RECORDED:
            subprocess.run(["nft", "flush", "ruleset"], check=True)
            if (
                "1.8.9"
                not in subprocess.run([each["program"], "-V"], capture_output=True, text=True, check=True).stdout
            ):
                return None
            if load(each["program"], each["rule"]):
                continue  # an extension that this kernel lacks
            compared += 1
            # The quota's remainder, the clock of rate limits and the seed of hash tables are not settings.
            found = [(kind, name, revision, info.hex()) for kind, name, revision, info, _ in xt_expressions()]
            recorded = [(one["kind"], one["name"], one["revision"], one["info"]) for one in each["expressions"]]
            if found != recorded:
                differences.append((each["rule"], found, recorded))
        return compared, differences

    result = node.call(run)
    if result is None:
        pytest.skip("another version than iptables-nft 1.8.9")
    compared, differences = result
    assert differences == []
    assert compared > 40


# By name: rules of the mangle table's OUTPUT chain. Each is tried with all senders.
CASES = {
    "set": ["-j MARK --set-mark 7"],
    "set-under-mask": ["-j MARK --set-xmark 0x10/0x30"],
    "xor": ["-j MARK --xor-mark 0x11"],
    "and": ["-j MARK --and-mark 0x3", "-j MARK --or-mark 0x40"],
    "mark": ["-m mark ! --mark 0x10/0x30 -j MARK --set-mark 7"],
    "owner": ["-m owner --uid-owner 5 -j MARK --set-mark 7"],
    "owner-range": ["-m owner --uid-owner 3-9 -j MARK --set-mark 7"],
    "owner-inverted": ["-m owner ! --uid-owner 5 -j MARK --set-mark 7"],
    "owner-range-inverted": ["-m owner ! --uid-owner 3-9 -j MARK --set-mark 7"],
    "group": ["-m owner --gid-owner 6 -j MARK --set-mark 7"],
    "owner-and-group": ["-m owner --uid-owner 5 --gid-owner 6 -j MARK --set-mark 7"],
    "owner-inverted-and-group": ["-m owner ! --uid-owner 5 --gid-owner 0 -j MARK --set-mark 7"],
    "neither": ["-m owner ! --uid-owner 5 ! --gid-owner 0 -j MARK --set-mark 7"],
    "save": ["-j CONNMARK --save-mark"],
    "save-under-mask": ["-j CONNMARK --set-mark 0xff", "-j CONNMARK --save-mark --nfmask 0x30 --ctmask 0xf"],
    "save-shifted": ["-j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff00 --left-shift-mark 8"],
    "save-shifted-right": ["-j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff --right-shift-mark 4"],
    "set-and-restore": ["-j CONNMARK --set-mark 0x25", "-j CONNMARK --restore-mark"],
    "restore-under-mask": ["-j CONNMARK --set-mark 0x25", "-j CONNMARK --restore-mark --nfmask 0xf --ctmask 0xf"],
    "restore-elsewhere": ["-j CONNMARK --set-mark 0x25", "-j CONNMARK --restore-mark --nfmask 0xf0 --ctmask 0xff"],
    "connmark": ["-j CONNMARK --set-xmark 0x25", "-m connmark --mark 0x5/0xf -j MARK --set-mark 7"],
    "connmark-inverted": ["-m connmark ! --mark 0x5/0xf -j MARK --set-mark 7"],
    "state": ["-m conntrack --ctstate NEW -j MARK --set-mark 7"],
    "state-inverted": ["-m conntrack ! --ctstate NEW,INVALID -j MARK --set-mark 7"],
    "state-and-direction": ["-m conntrack --ctstate NEW --ctdir ORIGINAL -j MARK --set-mark 7"],
    "ports": ["-p udp -m multiport ! --ports 1:8,10:20000 -j MARK --set-mark 7"],
    "either-port": ["-p udp -m multiport --ports 9,10 -j MARK --set-mark 7"],
    "addresses": ["-m iprange ! --dst-range 127.0.0.2-127.0.0.9 -j MARK --set-mark 7"],
    "nowhere": ["-m iprange --dst-range 127.0.0.2-127.0.0.9 -j MARK --set-mark 7"],
    "comment": ["-m comment --comment why -j MARK --set-mark 7"],
    "neutral": ["-j CLASSIFY --set-class 1:1", "-j CHECKSUM --checksum-fill", "-j MARK --set-mark 7"],
}  # fmt: skip
TRACKING = (False, True)
OWNERS = ((0, 0), (5, 6), (5, 0), (9, 6), (10, 6))
SENDERS = [(mark, *owner) for owner in OWNERS for mark in (0, 0x15, 0x31)]


def send(mark: int, uid: int, gid: int) -> None:
    """Send one datagram of a socket of this owner to this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sender.sendto(b"x", ("127.0.0.1", 9))


def send_as(mark: int, uid: int, gid: int) -> None:
    """Send with the file system ids of an owner: those of the socket's file."""
    child = os.fork()
    if not child:
        status = 1
        try:
            sender = socket.socket  # the capability to set a mark goes with the user
            os.setresgid(gid, gid, gid)
            if uid:
                with sender(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                # File system uid only: setfsuid(2) keeps CAP_NET_ADMIN.
                _libc().setfsuid(uid)
            send(mark, uid, gid)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def _libc():
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def ask_for_echo() -> None:
    """Let the kernel send an echo reply, which has no file."""
    echo = struct.pack("!BBHHH", 8, 0, 0xF7FF - 1, 1, 0x0000)
    checksum = ~sum(struct.unpack("!4H", struct.pack("!BBHHH", 8, 0, 0, 1, 0))) & 0xFFFF
    echo = struct.pack("!BBHHH", 8, 0, checksum, 1, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sender:
        sender.settimeout(5)
        sender.sendto(echo, ("127.0.0.1", 0))
        while sender.recv(100)[20] != 0:  # the request comes back by lo before the reply
            pass


def elements(name: str) -> set[int]:
    done = subprocess.run(["nft", "-j", "list", "set", "ip", "observer", name], capture_output=True, check=True)
    found = json.loads(done.stdout)["nftables"][1]["set"].get("elem", [])
    subprocess.run(["nft", "flush", "set", "ip", "observer", name], check=True)
    return {each["elem"]["val"] if isinstance(each, dict) else each for each in found}


def decoded_table() -> nft.Table:
    """Return the OUTPUT chain of this namespace's mangle table, of its extensions."""
    rules = []
    for family, table, chain, expressions in raw_rules():
        if (family, table, chain) != ("ip", "mangle", "OUTPUT"):
            continue
        statements: list[nft.Statement] = []
        for name, found in expressions:
            if name in ("match", "target"):
                extension = found[1].rstrip(b"\0").decode()
                statements += decode_xt(name, extension, int.from_bytes(found[2], "big"), found[3], family)
            elif name == "bitwise":  # -m mark, the only native test of the cases beside -p udp
                mask = int.from_bytes(found[4][4:8], "little")
            elif name == "meta":
                is_mark = found[2][-1] == 3  # NFT_META_MARK
            elif name == "cmp" and is_mark:
                value = int.from_bytes(found[3][4:8], "little")
                operator = "!=" if found[2][-1] else "=="
                statements.append(nft.Match(nft.Bitwise(nft.Meta("mark"), mask), value, operator))
            elif name == "cmp":
                statements.append(nft.Match(nft.Payload("ip", "protocol"), found[3][4]))
        rules.append(nft.Rule(tuple(statements)))
    return nft.Table("ip", "mangle", (nft.Chain("c", tuple(rules), nft.Hook("route", "output", -150)),))


def expected(table: nft.Table, mark: int, owner, is_tracked: bool) -> tuple[int, int | None]:
    """Return the mark and the flow's mark that the model gives the packet."""
    uid, gid = owner or (None, None)

    def run(choices):
        view = PacketView(4, LOOPBACK, LOOPBACK, UDP if owner else ICMP, 30000, 9, mark, uid=uid, gid=gid)
        if not owner:
            view.ct_state = "established"
        view.notrack = not is_tracked
        evaluate_chain(Ruleset((table,)), table, table.chains[0], view, choices)
        return view.mark, view.ct_mark if is_tracked else None

    (result,) = set(explore_branches(run).results)
    return result


@pytest.mark.parametrize("is_tracked", TRACKING, ids=["untracked", "tracked"])
@pytest.mark.parametrize("case", CASES)
def test_xt_statements_agree_with_this_kernel(node, case, is_tracked) -> None:
    def run():
        for rule in CASES[case]:
            assert not (error := load("iptables-nft", f"-t mangle -A OUTPUT {rule}")), error
        if not is_tracked:
            assert not load("iptables-nft", "-t raw -A OUTPUT -j CT --notrack")
        subprocess.run(["nft", "-f", "-"], input=OBSERVER, text=True, check=True)
        table, differences = decoded_table(), []
        for mark, *owner in (*SENDERS, (0,)):
            if owner:
                send_as(mark, *owner)
            else:
                ask_for_echo()
            marks, flows = elements("marks"), elements("flows")
            wanted = expected(table, mark, tuple(owner), is_tracked)
            seen = (marks, flows)
            if seen != ({wanted[0]}, set() if wanted[1] is None else {wanted[1]}):
                differences.append((mark, owner, seen, wanted))
        return differences

    assert node.call(run) == []
