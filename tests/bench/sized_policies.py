"""Policies of any size, in the shape of rulesets/gluon-fastd.toml, and the equivalent naive ruleset."""

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from tests.lab import addresses as at

GLUON = Path(__file__).parents[2] / "rulesets" / "gluon-fastd.toml"
FIRST_GROUP = 100_000
SIZES = (1, 100, 10_000)
NOBODY = "198.51.100.99"
_SHARED = (at.SERVER[4], NOBODY)  # every service may send there, so that one receiver serves all
_OWN = 7  # addresses of IPv4 that each service has for itself, and one of IPv6: ten in all
_IPV4, _IPV6 = int(IPv4Address("198.18.0.0")), int(IPv6Address("2001:db8:ffff::"))  # RFC 2544, RFC 3849


def last_group(services: int) -> int:
    """Return the group of the last service of a generated policy."""
    return FIRST_GROUP + services - 1


def generated(services: int) -> str:
    """Return a policy file of so many services, each a group that may send to ten addresses."""
    head = GLUON.read_text().split("[service.")[0].replace('"gluon-fastd"', f'"generated-{services}"')
    return head + "\n".join(_service(number) for number in range(services))


def _service(number: int) -> str:
    own = [str(IPv4Address(_IPV4 + number * _OWN + index)) for index in range(_OWN)]
    listed = ", ".join(f'"{one}"' for one in (*_SHARED, *own, IPv6Address(_IPV6 + number)))
    return f'[service.s{number}]\nuplink = "wan"\ngroup = {FIRST_GROUP + number}\nto = [{listed}]\n'


def naive(services: int) -> str:
    """Return one chain with one rule for each service, as written by hand; other packets are dropped at br-wan."""
    rules = "\n".join(f"meta skgid {FIRST_GROUP + number} meta mark & 1 == 1 accept" for number in range(services))
    return f"""table inet naive {{
chain guard {{ type filter hook postrouting priority 0; policy accept;
oifname != "{at.WAN}" accept
{rules}
icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept
udp sport 68 udp dport 67 accept
drop
}}
}}
"""
