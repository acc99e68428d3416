"""A leak that an import reports leaves a real kernel; with the imported policy, the same packet does not."""

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.state import NetState
from nftpolicy.policy.load import load
from nftpolicy.proof.reproduce.script import EXIT_LEFT, EXIT_NOT_LEFT, reproduction_script
from nftpolicy.runtime.import_openwrt import import_config, read_router_config
from tests.lab.netns import Namespace
from tests.openwrt.test_import import of_fixture, router  # noqa: F401

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("able")]


def status(text):
    with Namespace("imported") as space:
        return space.run(["sh", "-s"], input=text, check=False).returncode


def found(place, name):
    files = of_fixture(name)
    if name == "gluon-node":  # so that netifd has its rule 90000 in IPv6 too
        files["network"] = files["network"].replace("\toption igmp_snooping '1'\n", "\toption ipv6 '1'\n", 1)
    return import_config(read_router_config(place(files)), (), NetState())


@pytest.mark.parametrize("name", ["gluon-node", "default-router"])
def test_import_leaks_leave_kernel_and_policy_stops(router, name):  # noqa: F811
    result = found(router, name)
    guard = compile_policy(load(result.proposal.text.encode(), "p")[0]).tables
    assert len(result.leaks) >= 6
    for way in result.leaks:
        assert status(way.script()) == EXIT_LEFT, way.sender
        guarded = evolve(way.state, tables=(*way.state.tables, *guard))
        assert status(reproduction_script(guarded, way.trace.packet, way.trace.device, way.sender)) == EXIT_NOT_LEFT, (
            way.sender
        )
