"""Specification: its regions, devices and ip rules."""

from ipaddress import IPv4Network

import pytest
from attrs import evolve

from nftpolicy.compiler.compile import compile_policy
from nftpolicy.model.symbolic.box import points
from nftpolicy.policy.objects import Lan
from nftpolicy.proof.context import ProofContext
from nftpolicy.proof.entitlement import entitled_regions, reply_regions
from nftpolicy.proof.exemption_spec import EXEMPTIONS
from nftpolicy.proof.policy_spec import build_spec
from nftpolicy.proof.prover import prove_guard
from nftpolicy.proof.spec import Region, ServiceSpec, UplinkSpec
from nftpolicy.proof.verdict import REFUTED
from tests.unit.proved_policy import POLICY, SPEC, STATE

IN_FIRST_FRAGMENT = {"sport", "dport", "icmp.type", "icmpv6.type", "tcp.rst"}
REGIONS = {
    **{f"exemption {name}": regions for name, (by_family, _) in EXEMPTIONS.items() for regions in by_family.values()},
    **{
        f"{title} {uplink.name} {family}": tuple(regions(uplink, family))
        for title, regions in (("entitled", entitled_regions), ("reply", reply_regions))
        for uplink in SPEC.uplinks
        for family in (4, 6)
    },
}


@pytest.mark.parametrize("name", REGIONS)
def test_region_with_ports_or_types_holds_no_fragments(name):
    for region in REGIONS[name]:
        if IN_FIRST_FRAGMENT & region.fields.keys():
            assert region.fields["fragment"] == points(0)
            assert "protocol" in region.fields


def test_regions_with_ports_exist_for_each_kind():
    fields = {
        name.split()[0]: {field for region in found for field in region.fields} for name, found in REGIONS.items()
    }
    assert set(fields) == {"exemption", "entitled", "reply"}
    entitled = {
        field
        for name, found in REGIONS.items()
        if "entitled wan" in name
        for region in found
        for field in region.fields
    }
    assert {"dport", "sport", "icmp.type", "icmpv6.type", "tcp.rst", "gid", "uid", "daddr"} <= entitled


def test_kernel_service_without_ports_is_udp_without_socket():
    service = ServiceSpec("wg", (), (), True, {4: (Region(),), 6: (Region(),)})
    first = next(entitled_regions(UplinkSpec("wan", ("wan",), 1, 1, services=(service,)), 4))
    assert (first.fields, first.marks) == ({"socket": points(0), "protocol": points(17)}, ())


def test_region_of_another_family_has_no_box():
    space = ProofContext(STATE, SPEC.devices, SPEC.masks).space(4)
    assert Region({"nfproto": points(6)}).boxes(space) == []
    assert len(Region({"nfproto": points(4)}).boxes(space)) == 1


def test_devices_of_a_spec_are_uplinks_ports_and_inside():
    spec = build_spec(POLICY, {"wan": ("port0",)})
    assert sorted(spec.devices) == ["lan", "lo", "lte", "port0", "wan"]


def test_lan_of_public_network_is_no_part_of_the_spec():
    """A policy of the Python API is not validated: its state is no leak of the specification only if it has none."""
    lan = Lan("wan", (IPv4Network("192.168.0.0/15"), IPv4Network("198.51.100.0/24")))
    policy = evolve(POLICY, lan={"nas": lan})
    (exemption,) = [one for one in build_spec(policy).uplinks[0].exemptions if one.is_lan]
    assert {region.fields["daddr"] for region in exemption.headers[4]} == {((0xC0A80000, 0xC0A8FFFF),)}
    proof = prove_guard(compile_policy(policy), build_spec(policy))
    assert proof.property_verdict("P1") == REFUTED
