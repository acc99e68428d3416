"""Header fields that a proof chooses for a counterexample, sent by its script in the kernel."""

import pytest

from nftpolicy.model.packet import Packet, parse_address
from nftpolicy.proof.prover import prove
from nftpolicy.proof.spec import Spec, UplinkSpec
from tests.header_tests import HEADER_TESTS

from .test_reproduction_scripts import EXIT_LEFT, EXIT_NOT_LEFT, FAR, WAN, agreed, only, reproduced, router, space

__all__ = ["space"]
pytestmark = pytest.mark.kernel

SPEC = Spec((UplinkSpec("wan", (WAN,), 1, 1),))


@pytest.mark.parametrize("name", HEADER_TESTS)
def test_packet_with_chosen_header_leaves(space, name):
    family, matches = HEADER_TESTS[name]
    state = router(family, only(*matches))
    usual = Packet(family, parse_address(FAR[family]))
    if name != "tcp flags":
        assert reproduced(space, state, usual) == EXIT_NOT_LEFT, "the control: a usual packet is dropped"
    found = next(each for each in prove(state, SPEC).findings if each.subject.startswith("sockets"))
    assert found.verdict == "refuted"
    example = next(each for each in found.examples if each.packet.family == family)
    assert agreed(space, state, example.packet) == EXIT_LEFT
