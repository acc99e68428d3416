"""Constructs that nft and nf_tables accept, and their effects: owners, wildcards, missing devices."""

import re
import socket
import subprocess
from collections.abc import Callable

import pytest

from tests.lab import packet_senders
from tests.lab.frames import ETH_PRIVATE
from tests.lab.netns import Namespace, veth, wait_until

from .two_link_node import MESH, ONLY_WAN, WAN, TwoLinkNode, counters, default

pytestmark = pytest.mark.kernel

IS_NFT_1_0 = " v1.0." in subprocess.run(["nft", "--version"], capture_output=True, text=True, check=True).stdout
OWNED = "table inet owned {\n flags owner;\n chain c {\n  type filter hook postrouting priority 0\n }\n}\n"


def tables(space: Namespace) -> set[str]:
    return set(re.findall(r"table (\w+ \w+)", space.run(["nft", "list", "tables"]).stdout))


def keep(space: Namespace) -> "subprocess.Popen[str]":
    """Start an nft that makes an owned table and stays."""
    process = space.popen(["nft", "-i"], stdin=subprocess.PIPE, text=True)
    process.stdin.write("add table inet owned { flags owner; }\n")
    process.stdin.flush()
    return process


def test_K8_owned_table_is_protected_and_ends_with_owner(node: Namespace) -> None:
    """Another process cannot delete a table with `flags owner`, a flush skips it, and it ends with its owner."""
    node.nft("table inet plain {\n}\n")
    owner = keep(node)
    wait_until(lambda: tables(node) == {"inet plain", "inet owned"}, 2, "the owned table")
    refused = node.run(["nft", "delete", "table", "inet", "owned"], check=False)
    assert refused.returncode and "not permitted" in refused.stderr, "an owner does not protect from others here"
    node.run(["nft", "flush", "ruleset"])
    # The plain table shows that the flush did flush.
    assert tables(node) == {"inet owned"}, "a foreign flush takes owned tables here: nothing but watch can help"
    owner.kill()
    owner.communicate()
    # Where this times out, an owned table survives its owner: the guard could use the flag.
    wait_until(lambda: not tables(node), 2, "the end of the owned table")


def test_L13_table_with_flags_owner_ends_with_nft(node: Namespace) -> None:
    """`nft -f` accepts `flags owner`, and the table is gone as soon as that nft has ended."""
    assert node.nft(OWNED, check=False).returncode == 0, "this nft refuses owner"
    assert tables(node) == set(), "an owned table survives its owner here: the guard could use the flag"
    node.nft(OWNED.replace(" flags owner;\n", ""))
    assert tables(node) == {"inet owned"}, "the positive control: without the flag the table stays"


def test_L13_nft_1_0_refuses_flags_persist(node: Namespace) -> None:
    """Version 1.0.6 of nft does not know `flags persist`; 1.1.3 does."""
    refused = node.nft(OWNED.replace("owner;", "owner,persist;"), check=False)
    assert bool(refused.returncode) == IS_NFT_1_0, "only with 1.0 the guard cannot use `flags owner,persist`"


def mangle(value: str) -> str:
    return (
        "table inet mangle {\n chain c {\n  type filter hook output priority 0; policy accept;\n"
        f"  meta mark set {value}\n }}\n}}\n"
    )


def test_L13_nft_1_0_refuses_merge_of_two_marks(node: Namespace) -> None:
    """Version 1.0.6 of nft refuses to merge packet mark and flow mark in one statement, 1.1.3 does not."""
    node.nft(mangle("meta mark & 0xffffff00 | 0x1"))
    refused = node.nft(mangle("meta mark & 0xffffff00 | ct mark & 0xff"), check=False)
    assert bool(refused.returncode) == IS_NFT_1_0, "only with 1.0 the restore chain needs a rule for each mark"
    assert "constant" in refused.stderr or not IS_NFT_1_0, f"refused for another reason: {refused.stderr}"


RULE = "table inet text {{\n chain c {{\n  {}{}}}\n}}\n"


@pytest.mark.parametrize("end", ["\n", "; "], ids=["newline", "semicolon"])
def test_L14_nft_1_0_requires_statement_end_before_brace(node: Namespace, end: str) -> None:
    """Version 1.0.6 of nft requires a newline or a semicolon between a statement and `}`."""
    assert node.nft(RULE.format("counter accept", end), check=False).returncode == 0, (
        "netstate/text.py cannot be loaded"
    )
    assert node.nft(RULE.format("counter accept", " "), check=False).returncode, "a newer nft: nothing has to change"


def test_L14_nft_1_0_accepts_tcp_flags_by_mask_only(node: Namespace) -> None:
    """Version 1.0.6 of nft refuses `tcp flags rst / rst` and accepts `tcp flags & rst == rst`."""
    assert node.nft(RULE.format("tcp flags & rst == rst accept", "\n"), check=False).returncode == 0, (
        "netstate/text.py writes flags in a way that this nft refuses"
    )
    assert node.nft(RULE.format("tcp flags rst / rst accept", "\n"), check=False).returncode, "nothing has to change"


def test_K10_device_set_with_wildcard_matches_prefix(two_links: TwoLinkNode) -> None:
    """A set of type ifname with intervals takes "ba*", lists it so, and matches the devices that it means."""
    two_links.node.nft(
        "table inet names {\n counter hit { }\n set inside {\n  type ifname; flags interval;\n"
        '  elements = { "ba*" }\n }\n'
        " chain c {\n  type filter hook postrouting priority 0; policy accept;\n"
        f"  udp dport {packet_senders.DISCARD} oifname @inside counter name hit\n }}\n}}\n"
    )
    listed = two_links.node.run(["nft", "list", "table", "inet", "names"]).stdout
    assert '"ba*"' in listed, "what is read back differs from what was written: netstate must know how"
    assert two_links.counters_of(packet_senders.udp_bound, 4) == set(), f"{WAN} is no ba*: the set matches too much"
    two_links.node.ip(default(MESH, 4))
    two_links.send(packet_senders.udp)
    assert counters(two_links.node)["hit"] == 1, f"{MESH} is ba*: wildcards need rules of their own rather than a set"


LATE = (
    "table netdev late {\n counter hit { }\n chain c {\n"
    '  type filter hook egress device "late" priority 0; policy accept;\n'
    f"  ether type {ETH_PRIVATE:#x} counter name hit drop\n }}\n}}\n"
)


@pytest.mark.usefixtures("egress")
class TestK9:
    """An egress chain for a device that is not there yet."""

    @pytest.fixture
    def filters(self, node: Namespace) -> Callable[[str], bool]:
        """Return True if a frame on a device passes the chain; the frame must leave or be dropped there."""
        if (done := node.nft(LATE, check=False)).returncode:
            message = "the link guard has to be put back by watch when a device appears"
            pytest.fail(f"no egress chain for a device that does not exist: {message}\n{done.stderr}")

        def check(device: str) -> bool:
            before, dropped = counters(node)["hit"], False
            with node.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
                try:
                    made.sendto(b"\xff" * 12 + ETH_PRIVATE.to_bytes(2, "big") + bytes(46), (device, ETH_PRIVATE))
                except OSError as error:
                    assert error.errno == 105, "a drop in egress tells AF_PACKET ENOBUFS"
                    dropped = True
            assert (counters(node)["hit"] > before) is dropped
            return dropped

        return check

    def test_K9_chain_filters_device_created_later(
        self, node: Namespace, far: Namespace, filters: Callable[[str], bool]
    ) -> None:
        """An egress chain that was loaded before its device existed filters the device, and again after re-creation."""
        veth(node, "other", far, "far0")
        assert not filters("other"), "the positive control: other devices pass"
        for peer in ("far1", "far2"):
            veth(node, "late", far, peer)
            assert filters("late"), "a device that appears is not covered: watch must load the link guard again"
            node.ip("link del late")

    def test_K9_chain_follows_device_name(
        self, node: Namespace, far: Namespace, filters: Callable[[str], bool]
    ) -> None:
        """A renamed device leaves the chain, the next of the old name enters it, and so does the first on return."""

        def rename(old: str, new: str) -> None:
            node.ip(f"link set {old} down", f"link set {old} name {new}", f"link set {new} up")

        veth(node, "late", far, "far1")
        assert filters("late"), "the positive control"
        rename("late", "moved")
        by_name = "the chain follows the device here, not the name: watch must compare devices after a rename"
        assert not filters("moved"), by_name
        veth(node, "late", far, "far2")
        assert filters("late"), by_name
        node.ip("link del late")
        rename("moved", "late")
        assert filters("late"), by_name


def test_K10_device_set_with_exact_name_matches_no_prefix(two_links: TwoLinkNode) -> None:
    """A name without the star in a set matches that device only."""
    two_links.node.nft(
        "table inet names {\n counter hit { }\n set inside {\n  type ifname; flags interval;\n"
        f'  elements = {{ "{WAN[:-1]}" }}\n }}\n'
        " chain c {\n  type filter hook postrouting priority 0; policy accept;\n"
        f"  udp dport {packet_senders.DISCARD} oifname @inside counter name hit\n }}\n}}\n"
    )
    assert two_links.send(packet_senders.udp_bound) == ONLY_WAN
    assert counters(two_links.node)["hit"] == 0, "names in a set of intervals match devices that only begin so"
