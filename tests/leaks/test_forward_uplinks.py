"""A router with two uplinks: packets of one LAN by either, each with the address of its uplink, or by none."""

import contextlib
import json
from collections.abc import Iterator

import pytest

from tests.guarded_lab import guarded_lab
from tests.lab import addresses as at
from tests.lab import inbound_clients
from tests.lab.netns import Namespace
from tests.lab.sniffer import Sniffer
from tests.lab.topology import Lab
from tests.leaks import test_dual_uplink as dual
from tests.leaks.test_dual_uplink import LTE, DualUplinkNode

families = pytest.mark.parametrize("family", at.FAMILIES, ids=["ipv4", "ipv6"])
FORWARDS = f"""
[forward.echo]
uplink     = "lte"
from       = ["{at.CLIENT}"]
source     = ["{at.CLIENT_NET[4]}", "{at.CLIENT_NET[6]}"]
ports      = ["udp/{at.ECHO_PORT}"]
masquerade = true

[forward.rest]
uplink     = "wired"
from       = ["{at.CLIENT}"]
source     = ["{at.CLIENT_NET[4]}", "{at.CLIENT_NET[6]}"]
masquerade = true
"""


@pytest.fixture(scope="module")
def router() -> Iterator[DualUplinkNode]:
    with Namespace("lte") as lte, contextlib.ExitStack() as stack:

        def prepared(lab: Lab) -> str:
            dual.with_lte(lab, lte)
            return dual.policy(lab) + FORWARDS

        made = stack.enter_context(guarded_lab(prepared, table=dual.TABLES["wired"]))
        by_lte = stack.enter_context(Sniffer(lte, "to-node"))
        yield DualUplinkNode(made, {"wired": made.lab.wan, "lte": by_lte})


def sent(router: DualUplinkNode, family: int, port: int, word: bytes) -> dict[str, set[str]]:
    for sniffer in (*router.sniffers.values(), router.lab.mesh_sniffer):
        sniffer.drain()
    router.lab.client.call(inbound_clients.udp, at.SERVER[family], port, word)
    return router.seen(word)


@families
def test_each_forward_uses_its_uplink_and_address(router: DualUplinkNode, family: int) -> None:
    assert sent(router, family, at.ECHO_PORT, b"by-lte") == {"lte": {router.own("lte", family)}}
    assert sent(router, family, 9, b"by-wire") == {"wired": {router.own("wired", family)}}
    answer = router.lab.client.call(inbound_clients.udp, at.SERVER[family], at.ECHO_PORT, b"answer", 5)
    assert answer == b"answer"
    assert router.lab.client.call(inbound_clients.tcp, at.SERVER[family], at.ECHO_PORT, b"tcp", 5) == b"tcp"


def test_probe_captures_each_forward_on_its_uplink(router: DualUplinkNode) -> None:
    report = json.loads(router.guarded.nftpolicy("probe", "--json").stdout)
    controls = [control for arrival in report["forwarded"] for control in arrival["controls"]]
    captured = {(control["forward"], control["family"]) for control in controls if control["seen"]}
    assert captured == {(forward, family) for forward in ("echo", "rest") for family in at.FAMILIES}
    assert (report["verdict"], report["uncertain"], report["notes"]) == ("held", [], [])


@families
def test_forward_of_a_missing_uplink_uses_no_other(router: DualUplinkNode, family: int) -> None:
    router.lab.node.ip(f"link set {LTE} down")
    try:
        assert sent(router, family, at.ECHO_PORT, b"down") == {}
        assert sent(router, family, 9, b"still") == {"wired": {router.own("wired", family)}}, "inconclusive"
        with router.guarded.off():
            assert set(sent(router, family, at.ECHO_PORT, b"off")) == {"mesh"}, "inconclusive"
    finally:
        router.lab.node.ip(f"link set {LTE} up")
