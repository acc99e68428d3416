"""nft's debug output of a real kernel: read as the kernel's messages are, or less known, never more."""

import subprocess
import sys
from socket import if_nameindex

import pytest

from nftpolicy.kernel.libnft import Nft
from nftpolicy.kernel.netlink.nft_ruleset import read_tables
from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import nft_text
from nftpolicy.netstate.formats.nft_debug.ruleset import decode_debug_output
from tests.debug_output import has_unknown, more_known
from tests.kernel.raw_rules import ACCEPT, Expression, add_rule, compare, meta, payload
from tests.kernel.stock_rules import DOCKER, LIBVIRT, MARK, UFW
from tests.kernel.test_nft_bytecode import forms_table
from tests.kernel.test_nft_round_trip import PLACES
from tests.lab.daemons import tool
from tests.lab.netns import Namespace, search_path

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("able")]

OF_PROTOCOL, OF_MARK, OF_IIFNAME, OF_L4PROTO = 1, 3, 6, 16  # NFT_META_*
NETWORK, TRANSPORT = 1, 2  # NFT_PAYLOAD_*
STATEMENTS_OF_ELEMENTS = """
table ip t {
 set limited { type ipv4_addr; flags dynamic
  limit rate 5/second
  elements = { 1.1.1.1 limit rate 5/second }
 }
 set counted { type ipv4_addr; flags interval
  counter
  elements = { 1.0.0.0/8 counter packets 5 bytes 5 }
 }
 map marks { type ipv4_addr : mark; flags interval
  elements = { 1.1.1.0/24 : 5, 2.2.2.2 : 256 }
 }
 chain c { type filter hook output priority 0
  ip saddr @limited accept
  ip saddr @counted accept
  meta mark set ip saddr map @marks
  ip saddr { 1.1.1.1 limit rate 3/second, 2.2.2.2 } accept
  ip saddr { 1.1.1.1 counter, 2.2.2.2 } accept
  tcp dport vmap { 22 : accept, 80-90 : drop }
  tcp dport 80 redirect to :tcp dport map { 80 : 8080, 81 : 256 }
 }
 chain d { type filter hook input priority 0
  iifname "abcdefghijklm*" drop
  iifname "abcdefghijklm" drop
  iifname { "a*", "eth0" } drop
  ct original ip saddr 10.0.0.0 drop
  ct original ip saddr 10.1.2.3/32 drop
  tcp dport 256 meta mark 0x100 drop
  jump { accept
  }
 }
}
""".replace("  tcp dport 80 redirect to :tcp dport map { 80 : 8080, 81 : 256 }\n", "")


def both() -> tuple[tuple[nft.Table, ...], tuple[nft.Table, ...]]:
    """Return this namespace's tables as read by netlink, and from the debug output of nft."""
    words = [str(tool("nft")), "--debug=netlink", "-y", "-a", "list", "ruleset"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    shown = decode_debug_output(text.split("\n"), dict(if_nameindex()), sys.byteorder)
    return read_tables(), shown


def load(text: str) -> None:
    error = Nft().load(text)
    assert error is None, error


def counts(executed: tuple[nft.Table, ...], shown: tuple[nft.Table, ...]) -> tuple[int, int]:
    """Return how many rules there are, and how many of them the second reading understands as the first."""
    rules = [
        [rule for table in tables for chain in table.chains for rule in chain.rules] for tables in (executed, shown)
    ]
    return len(rules[0]), sum(one == other for one, other in zip(*rules, strict=False))


@pytest.mark.parametrize("place", PLACES)
def test_debug_output_of_rules_shows_no_more(place: str) -> None:
    def compare_readings() -> tuple[list[str], int, int]:
        load(nft_text.table_text(forms_table(place)))
        executed, shown = both()
        return more_known(executed, shown), *counts(executed, shown)

    with Namespace("debug") as space:
        more, rules, equal = space.call(compare_readings)
    assert more == []
    assert equal > 0.9 * rules > 0


def test_debug_output_of_elements_shows_no_more() -> None:
    def compare_readings() -> list[str]:
        load(STATEMENTS_OF_ELEMENTS)
        executed, shown = both()
        assert any(isinstance(rule.statements[0], nft.UnknownStatement) for rule in shown[0].chains[1].rules)
        limited = shown[0].chains[0].rules[3]
        assert has_unknown(limited.statements), nft_text.display_text(limited)
        return more_known(executed, shown)

    with Namespace("debug") as space:
        assert space.call(compare_readings) == []


@pytest.mark.skipif(tool("iptables-nft") is None, reason="iptables-nft is not installed")
def test_debug_output_of_iptables_nft_shows_no_more() -> None:
    def compare_readings() -> list[str]:
        for line in "\n".join((DOCKER, LIBVIRT, UFW, MARK)).splitlines():
            if line:
                command = f"iptables-nft {line}"
                subprocess.run(["sh", "-c", command], check=True, env={"PATH": search_path()}, capture_output=True)
        executed, shown = both()
        assert (
            sum(has_unknown(rule.statements) for table in shown for chain in table.chains for rule in chain.rules) > 5
        )
        return more_known(executed, shown)

    with Namespace("debug") as space:
        assert space.call(compare_readings) == []


PARTIAL: dict[str, tuple[Expression, ...]] = {
    "mark": (meta(OF_MARK), compare(b"\1")),
    "protocol": (meta(OF_PROTOCOL), compare(b"\x08")),
    "protocol before an address": (
        meta(OF_PROTOCOL),
        compare(b"\x08"),
        payload(NETWORK, 12, 4),
        compare(b"\x0a\0\0\0"),
    ),
    "port": (meta(OF_L4PROTO), compare(b"\x06"), payload(TRANSPORT, 2, 2), compare(b"\1")),
    "address": (payload(NETWORK, 12, 4), compare(b"\x0a")),
}
WHOLE: dict[str, tuple[Expression, ...]] = {
    "name": (meta(OF_IIFNAME), compare(b"lo\0")),
    "longer name": (meta(OF_IIFNAME), compare(b"lo\0\0\0\0")),
    "prefix of a name": (meta(OF_IIFNAME), compare(b"lo")),
    "mark": (meta(OF_MARK), compare((1).to_bytes(4, sys.byteorder))),
    "port": (meta(OF_L4PROTO), compare(b"\x06"), payload(TRANSPORT, 2, 2), compare(b"\1\0")),
}


def read_rule(expressions: tuple[Expression, ...]) -> tuple[str, str]:
    """Return a rule as both readings have it; runs in the namespace."""
    load("table inet t {\n chain c { type filter hook output priority 0\n }\n}\n")
    add_rule("t", "c", *expressions, ACCEPT)
    executed, shown = both()
    assert more_known(executed, shown) == []
    one, other = (nft_text.display_text(tables[0].chains[0].rules[0]) for tables in (executed, shown))
    return one, other


@pytest.mark.parametrize("case", PARTIAL)
def test_comparison_of_first_bytes_is_not_taken_as_whole(case: str) -> None:
    with Namespace("debug") as space:
        _, shown = space.call(lambda: read_rule(PARTIAL[case]))
    assert "does not show how many bytes" in shown


@pytest.mark.parametrize("case", WHOLE)
def test_comparison_with_whole_value_is_read(case: str) -> None:
    with Namespace("debug") as space:
        executed, shown = space.call(lambda: read_rule(WHOLE[case]))
    assert shown == executed
    assert "<" not in shown
