# SPDX-License-Identifier: BSD-2-Clause
"""P1 beside wg-quick, whose chain premangle gives arriving packets the mark of their flow.

The policy's chain behind it takes the mark again. A LATE chain of the same kind is behind that one.
"""

from pathlib import Path

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.nft import ACCEPT, Match, Meta, Rule
from nftpolicy.netstate.routing import Sysctl
from nftpolicy.netstate.state import Device
from nftpolicy.policy.load import load
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove
from nftpolicy.proof.spec import Spec
from tests.leaking_states import wg_quick

LAPTOP = (Path(__file__).parents[2] / "rulesets" / "laptop-wireguard.toml").read_text()
DEVICES = tuple(Device(name) for name in ("lo", "eth0", "wlan0", "wg0"))
OFF = {
    f"net/{family}/conf/{name}/{key}": "0"
    for name in ("all", *(device.name for device in DEVICES))
    for family, key in (("ipv4", "forwarding"), ("ipv4", "bc_forwarding"), ("ipv6", "forwarding"))
} | {"net/ipv4/ip_forward": "0"}
EARLY, LATE = -150, -148  # priorities of premangle: that of wg-quick, and one behind the policy's chain
BRIDGE = evolve(DEVICES[3], name="br0", kind="bridge")


def changed(tables, name, change):
    """Return the tables with `change` applied to the chains of a name."""
    return tuple(
        evolve(table, chains=tuple(change(chain) if chain.name == name else chain for chain in table.chains))
        for table in tables
    )


def prove_beside(text=LAPTOP, changes=None, devices=DEVICES, spec=None, premangle=LATE, spared=None):
    """Prove the policy beside wg-quick; `spared`: a device whose packets pass the policy's chain as they are."""
    policy = load(text.encode())[0]
    compiled = compile_policy(policy)
    values = OFF | {f"net/ipv4/conf/{one.name}/forwarding": "0" for one in devices} | (changes or {})
    sysctls = {one.path: one for one in compiled.sysctls} | {
        path: Sysctl(path, value) for path, value in values.items() if value is not None
    }
    spare = (Rule((Match(Meta("iifname"), spared), ACCEPT)),) if spared else ()
    tables = (
        *changed(compiled.tables, "arrival", lambda chain: evolve(chain, rules=(*spare, *chain.rules))),
        *changed(
            wg_quick().state.tables,
            "premangle",
            lambda chain: evolve(chain, hook=evolve(chain.hook, priority=premangle)),
        ),
    )
    sample = evolve(compiled, tables=tables, devices=devices, sysctls=tuple(sysctls.values()))
    return prove(sample, spec or evolve(build_spec(policy), frames=False))


def verdicts(proof):
    return {str(one.verdict) for one in proof.findings if one.property == "P1"}


def test_machine_that_forwards_nothing_is_proved():
    proof = prove_beside()
    assert verdicts(proof) == {"proved"}
    assert [one for one in proof.assumptions if "forwards no IPv4" in one and "premangle" in one]
    assert not [one for one in proof.assumptions if "forwards no IPv6" in one]  # its rules are of IPv4


FORWARDS = {
    "a device": ({"net/ipv4/conf/wg0/forwarding": "1"}, DEVICES),
    "lo": ({"net/ipv4/conf/lo/forwarding": "1"}, DEVICES),
    "a device that was not read": ({"net/ipv4/conf/wg0/forwarding": None, "net/ipv4/ip_forward": None}, DEVICES),
    "to broadcast addresses": ({"net/ipv4/conf/all/bc_forwarding": "1"}, DEVICES),
    "to groups": ({"net/ipv4/conf/all/mc_forwarding": "1"}, DEVICES),
    "by a bridge": ({"net/bridge/bridge-nf-call-iptables": "1"}, (*DEVICES, BRIDGE)),
    "unknown devices": ({}, ()),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_machine_that_may_forward_is_not_proved(name):
    changes, devices = FORWARDS[name]
    proof = prove_beside(changes=changes, devices=devices)
    assert "unknown" in verdicts(proof)
    assert any("premangle" in one.detail for one in proof.findings if one.property == "P1")


@pytest.mark.parametrize("name", FORWARDS)
def test_mark_that_the_policy_takes_again_is_proved(name):
    changes, devices = FORWARDS[name]
    proof = prove_beside(changes=changes, devices=devices, premangle=EARLY)
    assert verdicts(proof) == {"proved"}
    assert not [one for one in proof.assumptions if "forwards no IPv" in one]


@pytest.mark.parametrize("priority", [-149, -148])
def test_mark_that_comes_with_or_after_the_reset_is_not_proved(priority):
    assert "unknown" in verdicts(prove_beside(changes=FORWARDS["a device"][0], premangle=priority))


@pytest.mark.parametrize("spared", ["lan*", "wg0"])
def test_reset_that_spares_a_device_is_none(spared):
    proof = prove_beside(changes=FORWARDS["a device"][0], premangle=EARLY, spared=spared)
    assert "unknown" in verdicts(proof)
    assert any("premangle" in one.detail for one in proof.findings if one.property == "P1")


def test_bridge_without_hooks_forwards_nothing():
    off = {"net/bridge/bridge-nf-call-iptables": "0"}
    assert verdicts(prove_beside(changes=off, devices=(*DEVICES, BRIDGE))) == {"proved"}


def test_uplink_that_answers_is_not_proved():
    """Its replies get the mark of their flow, and a chain of wg-quick marks flows that began elsewhere."""
    text = LAPTOP.replace("[uplink.network.resolver]", 'answer = ["ssh"]\n[uplink.network.resolver]')
    proof = prove_beside(text)
    assert "unknown" in verdicts(proof)
    assert any("postmangle" in one.detail for one in proof.findings if one.property == "P1")


def test_ruleset_without_policy_is_not_proved():
    """No rule tests the sender of an error to which the kernel copies the mark."""
    uplinks = build_spec(load(LAPTOP.encode())[0]).uplinks
    assert "unknown" in verdicts(prove_beside(spec=Spec(uplinks, frames=False)))
