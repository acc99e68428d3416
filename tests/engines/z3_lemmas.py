"""The lemmas of P1 and P2 as questions for z3."""

from collections.abc import Callable, Iterator

from attrs import evolve

from nftpolicy.model.packet import ETHERTYPES
from nftpolicy.proof.context import ProofContext
from nftpolicy.proof.exemption_spec import REPORT_EXEMPTIONS, exemption
from nftpolicy.proof.spec import ARRIVAL, Region, UplinkSpec

from . import z3_chains

_ARPHRD_ETHER = 1  # include/uapi/linux/if_arp.h


def answers(
    context: ProofContext, uplink: UplinkSpec, family: int, seconds_left: Callable[[], float]
) -> Iterator[bool | None]:
    """Yield the answer to each lemma: no mark is given away, nothing leaves or strays; None: no answer in time."""
    exempt = [region for each in uplink.exemptions for region in each.headers.get(family, ())]
    exempt_frames = [
        evolve(region, fields={name: ranges for name, ranges in region.fields.items() if name != ARRIVAL})
        for region in exempt
    ]
    reports = [region for word in REPORT_EXEMPTIONS for region in exemption(word).headers.get(family, ())]
    leaving = Region(marks=(uplink.lacks_mark,), oifname=uplink.devices)
    straying = Region(marks=(uplink.has_mark,), not_oifname=(*uplink.devices, "lo"))
    # Frames of Ethernet whose ethertype is the one that their sender says.
    frames = leaving.narrowed(oiftype=((_ARPHRD_ETHER, _ARPHRD_ETHER),), ether_type=((ETHERTYPES[family],) * 2,))
    postrouting = context.filter_chains(family, "postrouting")
    yield z3_chains.integrity(
        family, context.all_chains(family), uplink.value, uplink.mask, uplink.devices, seconds_left()
    )
    yield _is_none_through(family, postrouting, leaving, exempt, seconds_left)
    for device in uplink.devices:
        chains = context.filter_chains(family, "egress", device)
        yield _is_none_through(family, chains, frames, exempt_frames, seconds_left)
    yield _is_none_through(family, postrouting, straying, reports, seconds_left)


def _is_none_through(
    family: int,
    chains: list[z3_chains.Place],
    region: Region,
    allowed: list[Region],
    seconds_left: Callable[[], float],
) -> bool | None:
    through = z3_chains.first_through(family, chains, region, allowed, seconds_left())
    return None if through is None else not through
