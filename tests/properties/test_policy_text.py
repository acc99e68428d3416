"""Round trip between a policy and its file."""

from ipaddress import ip_network
from itertools import combinations

from attrs import evolve
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from nftpolicy.policy import mark, validate, vocabulary
from nftpolicy.policy.load import load
from nftpolicy.policy.objects import Account, Service
from tests import policy_strategies


@given(policy_strategies.policies())
def test_policy_file_round_trips(policy):
    assert load(policy_strategies.to_toml(policy).encode())[0] == policy


@given(policy_strategies.toml(), st.data())
def test_key_line_is_the_line_in_the_file(text, data):
    _, source = load(text.encode())
    table = ()
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("["):
            table = tuple(line.strip("[]").split("."))
            assert source.line_of(table) <= number  # a table below it may come first
        elif line:
            key = (*table, line.split(" ")[0])
            assert source.line_of(key) == number
            assert source.line_of((*key, 99)) == number


@given(policy_strategies.marks(), st.integers(0, mark.FULL_MASK))
def test_mark_round_trips_and_keeps_foreign_bits(one, fwmark):
    assert mark.parse_mark(str(one)) == one
    worn = one.apply_to(fwmark)
    assert one.matches(worn)
    assert worn & ~one.mask == fwmark & ~one.mask
    assert 0 <= worn <= mark.FULL_MASK


@given(policy_strategies.marks(), policy_strategies.marks(), st.integers(0, mark.FULL_MASK))
def test_marks_overlap_if_a_packet_can_match_both(one, other, fwmark):
    both = one.apply_to(other.apply_to(fwmark))
    assert (one.matches(both) and other.matches(both)) == one.overlaps(other)


FEATURES = {
    "several uplinks": lambda one: len(one.uplink) > 2,
    "an uplink of several devices": lambda one: any(len(up.devices) > 1 for up in one.uplink.values()),
    "a CLAT": lambda one: any(up.clat for up in one.uplink.values()),
    "source ports of a lan": lambda one: any(lan.sport for lan in one.lan.values()),
    "a device with a dot": lambda one: any("." in dev for up in one.uplink.values() for dev in up.devices),
    "the highest bit of a mark": lambda one: any(up.mark.value >> 31 for up in one.uplink.values()),
    "a mask with gaps": lambda one: any("10" in f"{up.mark.mask:b}".rstrip("0") for up in one.uplink.values()),
    "nothing inside": lambda one: not one.inside,
    "no resolver": lambda one: not any(up.resolver for up in one.uplink.values()),
    "a server over TLS": lambda one: any(up.resolver.uses_tls for up in one.uplink.values() if up.resolver),
    "servers of a domain": lambda one: any(up.resolver.domains for up in one.uplink.values() if up.resolver),
    "a resolver at port 53": lambda one: any(place.port == 53 for place in _places(one)),
    "a resolver on an address of the machine": lambda one: any(not place.address.is_loopback for place in _places(one)),
    "a service of the kernel": lambda one: any(service.kernel for service in one.service.values()),
    "a service of a user": lambda one: any(service.user for service in one.service.values()),
    "networks in networks": lambda one: any(_overlap(service.to) for service in one.service.values()),
    "a range of ports": lambda one: any(port.low < port.high for service in one.service.values() for port in service.ports),
    "link-local destinations": lambda one: any(net.is_link_local for service in one.service.values() for net in service.to),
    **{
        f"exemption {word}": lambda one, word=word: any(word in up.exempt for up in one.uplink.values())
        for word in vocabulary.EXEMPTIONS
    },
    **{
        f"answer {word}": lambda one, word=word: any(word == got.name for up in one.uplink.values() for got in up.answer)
        for word in vocabulary.NAMED_ANSWERS
    },
}  # fmt: skip


def _places(policy):
    return [place for up in policy.uplink.values() if up.resolver for place in up.resolver.listen]


def _overlap(nets):
    return any(a.version == b.version and a.overlaps(b) for a, b in combinations(nets, 2))


def test_generated_policies_cover_every_feature():
    """Check the strategy that the other properties rely on."""
    seen = set()

    @settings(max_examples=400, database=None, phases=[Phase.generate], derandomize=True)
    @given(policy_strategies.policies())
    def one(policy):
        seen.update(name for name, has in FEATURES.items() if name not in seen and has(policy))

    one()
    assert seen == FEATURES.keys()


@given(
    policy_strategies.policies(most_services=1),
    st.sampled_from(("127.0.0.0/8", "127.1.2.3/32", "::1/128", "0.0.0.0/32")),
)
def test_local_destination_of_service_is_refused(policy, net):
    """Refuse a destination on the host itself, to which no packet leaves by an uplink."""
    uplink = next(iter(policy.uplink))
    spoiled = Service(uplink, group=Account("3000000", 3000000), to=(ip_network(net),))
    found = [path for path, _ in validate.find_faults(evolve(policy, service={"spoiled": spoiled}))]
    assert found == [("service", "spoiled", "to", 0)]
