# SPDX-License-Identifier: BSD-2-Clause
"""Effects of iptables extensions of which only the name is known."""

import pytest

from nftpolicy.netstate import nft
from nftpolicy.netstate.formats.nft_json_decode import decode_statement


def decode(kind, name, family="ip"):
    return decode_statement({"xt": {"type": kind, "name": name}}, family)


@pytest.mark.parametrize(
    ("name", "tracks"), [("recent", False), ("comment", False), ("connlimit", True), ("conntrack", True)]
)
def test_match_only_tests(name, tracks):
    assert decode("match", name) == nft.UnmodelledMatch(f"xt match {name}", tracks)


@pytest.mark.parametrize(
    ("kind", "name", "family"),
    [
        ("match", "socket", "ip"),  # may restore the mark of a socket
        ("match", "another", "ip"),
        ("match", "conntrack", "bridge"),
        ("target", "SET", "ip"),  # may write a mark
        ("target", "CT", "ip"),
        ("target", "MARK", "ip"),
        ("target", "another", "ip"),
        ("target", "LOG", "bridge"),  # its XT_CONTINUE is EBT_ACCEPT there
        ("target", "TTL", "inet"),  # of which family is not known
        ("target", "TTL", "ip6"),
        ("target", "REJECT", "arp"),
        ("watcher", "log", "bridge"),
    ],
)
def test_extension_with_another_effect_is_unknown(kind, name, family):
    assert isinstance(decode(kind, name, family), nft.UnknownStatement)


def test_target_continues_drops_translates_or_writes():
    assert decode("target", "LOG") == nft.NeutralTarget("LOG")
    assert decode("target", "CONNSECMARK") == nft.NeutralTarget("CONNSECMARK", needs_conntrack=True)
    assert decode("target", "log", "bridge") == nft.NeutralTarget("log")
    assert decode("target", "REJECT") == nft.Reject()
    assert isinstance(decode("target", "SNAT", "ip6"), nft.Snat)
    written = decode("target", "HL", "ip6")
    assert isinstance(written, nft.Mangle)
    assert written.key == nft.Payload("ip6", "hoplimit")
