"""Hypothesis strategies for policies."""

import json
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from attrs import evolve
from hypothesis import assume
from hypothesis import strategies as st

from nftpolicy.policy import scalars, validate, validate_clat, vocabulary
from nftpolicy.policy.mark import FULL_MASK, Mark
from nftpolicy.policy.objects import (
    Account,
    Clat,
    Forward,
    Lan,
    Listen,
    Policy,
    Port,
    Publish,
    Resolver,
    Server,
    Service,
    Uplink,
)

# Words that mean something to nft, which names must survive.
KEYWORDS = ("ip", "ip6", "meta", "ct", "set", "drop", "accept", "jump", "counter", "tcp", "last", "inet", "limit", "th")
# Few devices, so that two policies often have some in common.
COMMON = ("eth0", "eth1", "br-wan", "wlan0", "usb0.7", "0a-b_c")


def names():
    """Generate names of policies, uplinks and services."""
    return st.sampled_from(KEYWORDS) | st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,23}", fullmatch=True).filter(str.isascii)


def devices():
    """Generate names of network devices that can be uplinks."""
    rare = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}", fullmatch=True).filter(
        lambda name: name.isascii() and name not in ("lo", "all", "default")
    )
    return st.one_of(st.sampled_from(COMMON), st.sampled_from(COMMON), rare)


def patterns():
    """Generate patterns of `inside`."""
    return devices() | st.sampled_from(("bat0", "wg*", "tun*", "mesh-vpn", "br-client"))


def marks():
    """Generate a mark with any mask."""
    masks = st.integers(1, FULL_MASK) | st.integers(0, 31).map(lambda bit: 1 << bit)
    values_in = st.tuples(st.integers(0, FULL_MASK), masks).map(lambda pair: Mark(pair[0] & pair[1], pair[1]))
    return values_in.filter(lambda mark: mark.value)


@st.composite
def apart(draw, count):
    """Generate `count` marks that exclude each other."""
    if count == 1:
        return [draw(marks())]
    mask = draw(st.integers(0, 24).map(lambda shift: 0xFF << shift) | st.just(FULL_MASK))
    shift = (mask & -mask).bit_length() - 1
    found = draw(st.lists(st.integers(1, mask >> shift), min_size=count, max_size=count, unique=True))
    return [Mark(value << shift, mask) for value in found]


def ports():
    """Generate one port, or a range."""
    numbers = st.sampled_from((1, 53, 443, 65535)) | st.integers(1, 65535)
    return st.builds(
        lambda protocol, a, b: Port(protocol, min(a, b), max(a, b)),
        st.sampled_from(("tcp", "udp")),
        numbers,
        numbers,
    ) | st.builds(lambda protocol, one: Port(protocol, one, one), st.sampled_from(("tcp", "udp")), numbers)


def ports_list():
    """Generate at most two different ports."""
    return st.lists(ports(), max_size=2, unique=True)


def addresses(version=None):
    """Generate addresses of hosts that an IPv6 tool does not print as IPv4."""
    four = st.integers(0x01000000, 0xDFFFFFFF).map(IPv4Address)
    six = (st.integers(0x2000 << 112, (0x4000 << 112) - 1) | st.integers(1, 0xFFFF).map((0xFE80 << 112).__add__)).map(
        IPv6Address
    )
    return {4: four, 6: six, None: four | six}[version]


@st.composite
def networks(draw):
    """Generate prefixes of any length, a few of them whole hosts."""
    address = draw(addresses())
    length = draw(st.integers(0, address.max_prefixlen) | st.just(address.max_prefixlen))
    kind = IPv4Network if address.version == 4 else IPv6Network
    found = kind((int(address), length), strict=False)
    return kind((int(address), address.max_prefixlen)) if found.version == 6 and 0 < length < 8 else found


def accounts():
    """Generate an account by number, as in a policy of another host."""
    numbers = st.integers(1, 2000) | st.integers(1, 2**32 - 2)
    return numbers.map(lambda number: Account(str(number), number))


def own_networks():
    """Generate addresses of other devices that an uplink's network knows."""
    return st.lists(networks().filter(validate.is_routed), max_size=3, unique=True).map(tuple)


def gateways():
    """Generate at most one gateway of each family."""
    usable = addresses().filter(lambda one: not (one.is_loopback or one.is_multicast or one.is_unspecified))
    return st.lists(usable, max_size=2, unique_by=lambda one: one.version).map(tuple)


def clats(devices_of_uplink):
    """Generate the CLAT behind a device of the uplink that is not its first."""
    if len(devices_of_uplink) < 2:
        return st.none()
    lengths = st.sampled_from(validate_clat.NAT64_LENGTHS)
    prefixes = st.builds(lambda bits, length: IPv6Network((bits, length), strict=False), _nat64_bits(), lengths)
    return st.none() | st.builds(Clat, st.sampled_from(devices_of_uplink[1:]), prefixes)


def _nat64_bits():
    return st.integers(0x2000 << 112, (0x4000 << 112) - 1) | st.just(0x64FF9B << 96)


def upstream_servers(tls):
    """Generate a list of DNS servers, mostly with the usual port."""
    hosts = addresses().filter(lambda one: not one.is_multicast)
    usual, name = (853, "dns.example") if tls else (53, None)
    ports = st.just(usual) | st.just(usual) | st.sampled_from((5353, 65535))
    server = st.builds(
        lambda one, port: Server(one, "eth0" if one.is_link_local and one.version == 6 else None, port, name),
        hosts,
        ports,
    )
    return st.lists(server, min_size=1, max_size=3, unique=True).map(tuple)


@st.composite
def resolvers(draw, index):
    """Generate a resolver; `index` keeps those of several uplinks apart."""
    port = draw(st.integers(1, 65535) | st.just(53))
    four = Listen(IPv4Address(f"127.0.{index}.1") if draw(st.booleans()) else IPv4Address(f"192.0.2.{index}"), port)
    six = Listen(IPv6Address("::1") if index == 0 and draw(st.booleans()) else IPv6Address(f"fd00::{index}"), port)
    listen = draw(st.sampled_from(((four,), (six,), (four, six), (six, four))))
    if port == 53 and any(one.address.is_loopback for one in listen):  # where the machine's own resolver is asked
        listen = tuple(evolve(one, port=54) for one in listen)
    servers = draw(st.just(()) | upstream_servers(False) | upstream_servers(True))
    lease = None if servers else draw(st.none() | st.sampled_from(("/run/nftpolicy/wan.dns", "/run/a b")))
    listed = st.lists(
        st.sampled_from([one for one in vocabulary.DNS_SOURCES if one != "auto"]), max_size=3, unique=True
    )
    sources = () if servers or lease else tuple(draw(listed | st.just(["auto"])))
    upstream = upstream_servers(False) | upstream_servers(True) if servers else upstream_servers(False)
    names = st.sampled_from(("corp.example", "lan", "2.0.192.in-addr.arpa"))
    domains = draw(st.dictionaries(names, upstream, max_size=2))
    return Resolver(listen, tuple(servers), lease, sources, draw(accounts()), domains)


def answers():
    """Generate inbound services by name or port."""
    named = st.sampled_from(tuple(vocabulary.NAMED_ANSWERS))
    sources = st.just(()) | st.lists(networks().filter(scalars.has_hosts), min_size=1, max_size=3, unique=True).map(
        tuple
    )
    plain = (named | ports().map(str)).map(scalars.parse_answer)

    def narrowed(answer, source, exclusive):
        is_udp = answer.port is not None and answer.port.protocol == "udp" and answer.port.high < scalars.MAX_PORT
        return evolve(answer, source=source, exclusive=exclusive and is_udp)

    return st.builds(narrowed, plain, sources, st.booleans())


@st.composite
def services(draw, uplinks):
    """Generate a service of one of the uplinks."""
    uplink = draw(st.sampled_from(uplinks))
    how = draw(st.sampled_from(("group", "group", "user", "root", "kernel")))
    if how == "kernel":
        if draw(st.booleans()):
            ends = st.lists(networks().filter(scalars.is_routed), min_size=1, max_size=3, unique=True)
            chosen = st.lists(st.sampled_from(tuple(vocabulary.TUNNEL_PROTOCOLS)), min_size=1, unique=True)
            tunnels = [Port(protocol, 0, 0) for protocol in draw(chosen)]
            listed = st.lists(ports().filter(lambda port: port.protocol == "tcp"), max_size=2, unique=True)
            return Service(uplink, kernel=True, to=tuple(draw(ends)), ports=(*tunnels, *draw(listed)))
        bound = draw(st.lists(ports().filter(lambda port: port.protocol == "udp"), max_size=3, unique=True))
        return Service(uplink, kernel=True, sport=tuple(bound))
    to = draw(st.lists(networks(), max_size=4, unique=True))
    if to and draw(st.booleans()):  # one within another
        wider = to[0].supernet(min(3, to[0].prefixlen))
        to += [wider] if wider not in to and (wider.version == 4 or wider.prefixlen >= 8) else []
    to = tuple(net for net in to if not (net.is_loopback or net.is_unspecified))
    destinations = ports() | st.just(Port("ping", 0, 0))
    narrowed = tuple(draw(st.lists(destinations, max_size=4, unique=True)))
    if how == "root":
        return Service(uplink, user=Account("0", 0), marks="cgroup", to=to, ports=narrowed)
    return Service(uplink, **{how: draw(accounts())}, to=to, ports=narrowed, **draw(markings(how)))


@st.composite
def forwarding(draw, policy):
    """Generate policies with one forward or published port more each; some of them are not valid."""
    if not policy.inside:
        return []
    additions = []
    for name in draw(st.lists(names(), max_size=3, unique=True)):
        uplink = draw(st.sampled_from(tuple(policy.uplink)))
        if draw(st.booleans()):
            published = Publish(uplink, draw(ports()), draw(st.sampled_from(policy.inside)).replace("*", "9"))
            additions.append(evolve(policy, publish={name: published}))
            continue
        devices_ = draw(st.lists(st.sampled_from(policy.inside), min_size=1, max_size=2, unique=True))
        source, to = (draw(st.lists(networks(), max_size=2, unique=True)) for _ in range(2))
        narrowed = draw(st.lists(ports(), max_size=2, unique=True))
        forward = Forward(
            uplink, tuple(devices_), tuple(source), tuple(to), tuple(narrowed), masquerade=draw(st.booleans())
        )
        additions.append(evolve(policy, forward={name: forward}))
    return additions


PUBLIC_NETWORKS = (IPv4Network("198.51.100.0/24"), IPv4Network("1.2.0.0/16"), IPv6Network("2a00:1:2::/48"))


def local_networks():
    """Generate parts of private, unique local and link-local networks and groups."""
    blocks = [IPv4Network(text) for text in vocabulary.PRIVATE_NETWORKS[4]]
    blocks += [IPv6Network(text) for text in (*vocabulary.PRIVATE_NETWORKS[6], vocabulary.LINK_LOCAL_NETWORK)]
    blocks += [ip_network(text) for texts in vocabulary.LOCAL_GROUPS.values() for text in texts]

    def part(block, number, bits):
        length = min(block.prefixlen + bits, block.max_prefixlen)
        offset = number % (1 << length - block.prefixlen) << block.max_prefixlen - length
        return type(block)((int(block.network_address) + offset, length))

    return st.builds(part, st.sampled_from(blocks), st.integers(0, 1 << 128), st.integers(0, 24) | st.just(128))


@st.composite
def lans(draw, policy):
    """Generate policies with one more table `lan` each; some of them are not valid."""
    additions = []
    for name in draw(st.lists(names(), max_size=2, unique=True)):
        owner = {key: draw(accounts()) for key in draw(st.sampled_from(((), (), ("group",), ("user",))))}
        to = tuple(draw(st.lists(local_networks(), min_size=1, max_size=3, unique=True)))
        narrowed = tuple(draw(ports_list()))
        from_ports = () if narrowed else tuple(port for port in draw(ports_list()) if port.protocol == "udp")
        if from_ports:
            to += tuple(draw(st.lists(st.sampled_from(PUBLIC_NETWORKS), max_size=2, unique=True)))
        lan = Lan(draw(st.sampled_from(tuple(policy.uplink))), to, **owner, ports=narrowed, sport=from_ports)
        additions.append(evolve(policy, lan={name: lan}))
    return additions


def markings(how):
    """Generate the marking method of a service; `how` names the key of its owner."""
    words_ = tuple(word for word in vocabulary.MARKS_VALUES if word != "uid-rule" or how == "user")
    way = st.sampled_from(words_).map(lambda word: {"marks": word})
    return way | st.booleans().map(lambda confine: {"marks": "cgroup", "confine": confine})


def _without_shared_exclusive(uplinks):
    """Return the uplinks; a port that another one answers too is exclusive to none."""

    def is_shared(name, answer):
        others = (one.port for key, uplink in uplinks.items() if key != name for one in uplink.answer)
        return answer.exclusive and any(port and port.overlaps(answer.port) for port in others)

    return {
        name: evolve(
            uplink,
            answer=tuple(evolve(one, exclusive=one.exclusive and not is_shared(name, one)) for one in uplink.answer),
        )
        for name, uplink in uplinks.items()
    }


@st.composite
def policies(draw, device=None, most_uplinks=3, most_services=4):
    """Generate a valid policy. `device`: a strategy for the uplinks' devices."""
    device = devices() if device is None else device
    wanted = draw(st.lists(names(), min_size=1, max_size=most_uplinks, unique=True))
    worn = draw(apart(len(wanted)))
    numbers = (st.integers(1, 252) | st.integers(256, 2**32 - 1)).filter(lambda number: number != validate.QUERY_TABLE)
    tables = draw(st.lists(numbers, min_size=len(wanted), max_size=len(wanted), unique=True))
    owned = draw(st.lists(device, min_size=len(wanted), max_size=len(wanted) + 2, unique=True))
    uplinks = {}
    for index, name in enumerate(wanted):
        mine = tuple(owned[index :: len(wanted)])
        exempt = st.lists(st.sampled_from(tuple(vocabulary.EXEMPTIONS)), max_size=5, unique=True).map(tuple)
        answered = st.lists(answers(), max_size=3, unique_by=lambda one: one.port).map(tuple)
        learn = draw(st.sampled_from(((), ("ra",))))
        resolver = draw(st.none() | resolvers(index))
        uplinks[name] = Uplink(
            mine, worn[index], tables[index], draw(exempt), draw(answered), draw(gateways()), draw(own_networks()),
            learn, resolver, draw(st.booleans()), draw(clats(mine)),
        )  # fmt: skip
    inside = draw(st.lists(patterns(), max_size=4, unique=True).map(_apart))
    held = draw(st.dictionaries(names(), services(wanted), max_size=most_services))
    # What draws can't easily keep apart is left out: better than to throw the whole policy away.
    outside = [one for one in inside if not any(validate.matching_pattern(dev, (one,)) for dev in owned)]
    policy = Policy(draw(names()), tuple(outside), _without_shared_exclusive(uplinks), {})
    uplinks = policy.uplink
    for name, service in held.items():
        larger = Policy(policy.name, policy.inside, uplinks, {**policy.service, name: service})
        policy = larger if not any(validate.find_faults(larger)) else policy
    for larger in (*draw(forwarding(policy)), *draw(lans(policy))):
        merged = evolve(
            policy,
            forward=policy.forward | larger.forward,
            publish=policy.publish | larger.publish,
            lan=policy.lan | larger.lan,
        )
        policy = merged if not any(validate.find_faults(merged)) else policy
    assert not list(validate.find_faults(policy)), list(validate.find_faults(policy))
    return policy


def _apart(listed):
    """Return patterns of which none covers another."""
    return [
        one for one in listed if not any(other != one and validate.matching_pattern(one, (other,)) for other in listed)
    ]


@st.composite
def changed(draw, policy, device=None):
    """Generate an edited policy, which shares names, tables and marks with `policy`."""
    uplinks = dict(policy.uplink)
    for name, uplink in policy.uplink.items():
        what = draw(st.sampled_from(("nothing", "gateways", "devices", "exempt", "resolver", "mark", "gone")))
        if what == "gateways":
            uplinks[name] = evolve(uplink, gateways=draw(gateways()))
        elif what == "devices":
            others = {one for other, value in policy.uplink.items() if other != name for one in value.devices}
            free = (devices() if device is None else device).filter(lambda one, taken=others: one not in taken)
            drawn = tuple(draw(st.lists(free, min_size=1, max_size=2, unique=True)))
            uplinks[name] = evolve(uplink, devices=drawn, clat=draw(clats(drawn)))
        elif what == "exempt":
            uplinks[name] = evolve(uplink, exempt=uplink.exempt[1:], answer=uplink.answer[1:])
        elif what == "resolver":
            uplinks[name] = evolve(uplink, resolver=None)
        elif what == "mark":
            uplinks[name] = evolve(uplink, mark=Mark(uplink.mark.value, uplink.mark.value))
        elif what == "gone" and len(uplinks) > 1:
            del uplinks[name]
    kept = {
        name: service for name, service in policy.service.items() if service.uplink in uplinks and draw(st.booleans())
    }
    kept = {
        name: evolve(one, to=one.to[1:], ports=one.ports[1:]) if draw(st.booleans()) else one
        for name, one in kept.items()
    }
    forward = {name: one for name, one in policy.forward.items() if one.uplink in uplinks and draw(st.booleans())}
    publish = {name: one for name, one in policy.publish.items() if one.uplink in uplinks and draw(st.booleans())}
    lan = {name: one for name, one in policy.lan.items() if one.uplink in uplinks and draw(st.booleans())}
    found = Policy(policy.name, policy.inside[draw(st.integers(0, 1)) :], uplinks, kept, forward, publish, lan)
    assume(not any(validate.find_faults(found)))
    return found


@st.composite
def pairs(draw, device=None):
    """Generate two policies, of which one often is an edit of the other, in either order."""
    first = draw(policies(device))
    second = draw(st.one_of(changed(first, device), changed(first, device), policies(device)))
    return (first, second) if draw(st.booleans()) else (second, first)


# --- TOML -----------------------------------------------------------------------------------


def to_toml(policy):
    """Return a policy as a file: load(to_toml(policy)) is the policy again."""
    lines = [f"name = {_quoted(policy.name)}", f"inside = {_list(policy.inside)}"]
    for name, uplink in policy.uplink.items():
        lines += ["", f"[uplink.{name}]", *_pairs(_uplink(uplink))]
        if uplink.resolver:
            lines += ["", f"[uplink.{name}.resolver]", *_pairs(_resolver(uplink.resolver))]
        if uplink.clat:
            clat = {"device": _quoted(uplink.clat.device), "prefix": _quoted(str(uplink.clat.prefix))}
            lines += ["", f"[uplink.{name}.clat]", *_pairs(clat)]
    lines += [] if policy.uplink else ["[uplink]"]
    lines += [] if policy.service else ["[service]"]
    for name, service in policy.service.items():
        lines += ["", f"[service.{name}]", *_pairs(_service(service))]
    for name, forward in policy.forward.items():
        lines += ["", f"[forward.{name}]", *_pairs(_forward(forward))]
    for name, publish in policy.publish.items():
        keys = {"uplink": publish.uplink, "port": str(publish.port), "to": publish.to}
        lines += ["", f"[publish.{name}]", *_pairs({key: _quoted(text) for key, text in keys.items()})]
    for name, lan in policy.lan.items():
        owner = {key: str(account.number) for key, account in validate.account_selectors(lan)}
        values = {"uplink": _quoted(lan.uplink), "to": _list(lan.to), **owner, "ports": _list(lan.ports)}
        values["sport"] = _list(lan.sport)
        lines += ["", f"[lan.{name}]", *_pairs(values)]
    return "\n".join(lines) + "\n"


def _uplink(uplink):
    return {
        "devices": _list(uplink.devices),
        "mark": _quoted(str(uplink.mark)),
        "table": str(uplink.table),
        "exempt": _list(uplink.exempt),
        "answer": f"[{', '.join(map(_answer, uplink.answer))}]",
        "gateways": _list(uplink.gateways),
        "addresses": _list(uplink.addresses),
        "learn": _list(uplink.learn),
        "stp": str(uplink.stp).lower(),
    }


def _answer(answer):
    name = _quoted(answer.name)
    keys = [f"name = {name}"]
    keys += [f"source = {_list(answer.source)}"] if answer.source else []
    keys += ["exclusive = true"] if answer.exclusive else []
    return f"{{ {', '.join(keys)} }}" if keys[1:] else name


def _resolver(resolver):
    lease = {"lease": _quoted(resolver.lease)} if resolver.lease is not None else {}
    return {
        "listen": _list(resolver.listen),
        "servers": _list(resolver.servers),
        "sources": _list(resolver.sources),
        "user": str(resolver.user.number),
        **lease,
        **({"domains": _domains(resolver.domains)} if resolver.domains else {}),
    }


def _domains(domains):
    return "{ " + ", ".join(f"{_quoted(domain)} = {_list(servers)}" for domain, servers in domains.items()) + " }"


def _service(service):
    held = {key: str(account.number) for key, account in validate.account_selectors(service)}
    return {
        "uplink": _quoted(service.uplink),
        **held,
        "kernel": str(service.kernel).lower(),
        "sport": _list(service.sport),
        "marks": _quoted(service.marks),
        **({"cgroup": _quoted(service.cgroup)} if service.cgroup is not None else {}),
        "confine": str(service.confine).lower(),
        "to": _list(service.to),
        "ports": _list(service.ports),
    }


def _forward(forward):
    return {
        "uplink": _quoted(forward.uplink),
        "from": _list(forward.devices),
        "source": _list(forward.source),
        "to": _list(forward.to),
        "ports": _list(forward.ports),
        "masquerade": str(forward.masquerade).lower(),
    }


def _pairs(table):
    return [f"{key} = {value}" for key, value in table.items() if value != "[]" or key == "inside"]


def _list(items):
    return f"[{', '.join(_quoted(str(item)) for item in items)}]"


def _quoted(text):
    """Return a basic string of TOML: JSON's, with the control characters that JSON does not escape."""
    return re.sub(r"[\x7f]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def toml():
    """Generate the text of a valid policy."""
    return policies().map(to_toml)
