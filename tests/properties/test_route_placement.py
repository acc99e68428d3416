"""Placement of routes: after the planned moves each route is in its table, and foreign routes are unchanged."""

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from nftpolicy.netstate.routing import RTPROT_NFTPOLICY, TABLE_LOCAL, Nexthop, Route
from nftpolicy.runtime.apply import route_placement
from nftpolicy.runtime.apply.route_placement import UplinkTable

UPLINK_TABLES = {"wan0": UplinkTable("wan", 1), "wan1": UplinkTable("wan", 1), "lte0": UplinkTable("lte", 2)}
DEVICES = (*UPLINK_TABLES, "bat0", "lo")
ADDRESSES = {"wan0": ("192.0.2.2/24", "2001:db8::2/64", "fe80::2/64"), "lte0": ("10.0.0.1/32", "10.0.0.9/32")}
DESTINATIONS = {
    4: ("default", "0.0.0.0/1", "192.0.2.0/24", "198.51.100.0/24", "10.0.0.9/32", "192.0.2.1/32"),
    6: ("default", "::/1", "2001:db8::/64", "2001:db8:7::/64", "fe80::/64", "fe80::1/128"),
}
GATEWAYS = {4: (None, "192.0.2.1", "10.0.0.9"), 6: (None, "fe80::1", "2001:db8::1")}


@st.composite
def routes(draw):
    family = draw(st.sampled_from((4, 6)))
    table = draw(st.sampled_from((1, 2, 77, 253, 254, TABLE_LOCAL)))
    kind = draw(st.sampled_from(("unicast", "unicast", "unicast", "local", "unreachable")))
    hop = st.builds(Nexthop, st.sampled_from(DEVICES), st.sampled_from(GATEWAYS[family]))
    several = draw(st.just(()) | st.lists(hop, min_size=2, max_size=3, unique=True).map(tuple))
    one = draw(hop)
    return Route(
        family, table, draw(st.sampled_from(DESTINATIONS[family])), kind,
        None if several else one.gateway, None if several else one.device,
        draw(st.sampled_from((0, 100, 1024))), protocol=draw(st.sampled_from((2, 3, 4, 9, 16, RTPROT_NFTPOLICY))),
        nexthops=several, prefsrc=draw(st.sampled_from((None, "192.0.2.2"))) if family == 4 else None,
        expires=draw(st.sampled_from((None, 90))) if family == 6 else None,
    )  # fmt: skip


def apply_moves(all_routes, todo):
    """Return the routes after all moves, with the settling time over."""
    found = [
        one for one in all_routes if one not in todo.stale_copies and one not in [each.route for each in todo.misplaced]
    ]
    for one in todo.misplaced:
        if not one.already_there and not one.ours_wins:
            protocol = one.route.protocol if one.new_protocol is None else one.new_protocol
            moved = evolve(one.route, table=one.target.table, protocol=protocol)
            if moved.family == 4:  # it takes the place of another one
                place = route_placement.route_key(moved)
                found = [
                    each for each in found if each.table != moved.table or route_placement.route_key(each) != place
                ]
            found.append(moved)
    return found


def uplink_devices_of(route):
    return {way.device for way in route.all_nexthops} & {*UPLINK_TABLES}


@settings(max_examples=60)
@given(st.lists(routes(), max_size=8, unique=True))
def test_moved_routes_are_placed_and_the_plan_is_idempotent(all_routes):
    todo = route_placement.plan_moves(UPLINK_TABLES, all_routes, ADDRESSES)
    after = apply_moves(all_routes, todo)
    again = route_placement.plan_moves(UPLINK_TABLES, after, ADDRESSES)
    assert again.misplaced == ()
    assert set(again.mixed) <= set(todo.mixed)  # one that is in the table may have lost its place to another
    for one in after:
        homes = {UPLINK_TABLES.get(way.device) for way in one.all_nexthops}
        free = one.kind != "unicast" or one.table == TABLE_LOCAL or one.protocol == RTPROT_NFTPOLICY
        link_local = one.destination.startswith("fe80::")
        if not uplink_devices_of(one) or free or link_local:
            continue
        assert one in todo.mixed or homes == {UplinkTable(next(iter(homes)).uplink, one.table)}


@settings(max_examples=60)
@given(st.lists(routes(), max_size=8, unique=True))
def test_foreign_and_own_routes_are_not_moved(all_routes):
    todo = route_placement.plan_moves(UPLINK_TABLES, all_routes, ADDRESSES)
    touched = {*todo.stale_copies, *(one.route for one in todo.misplaced)}
    for one in all_routes:
        if not uplink_devices_of(one) or one.protocol == RTPROT_NFTPOLICY or one.table == TABLE_LOCAL:
            assert one not in touched
    assert not touched & {*todo.mixed}


@settings(max_examples=60)
@given(st.lists(routes(), max_size=8, unique=True))
def test_moved_route_keeps_its_output_device(all_routes):
    todo = route_placement.plan_moves(UPLINK_TABLES, all_routes, ADDRESSES)
    for one in todo.misplaced:
        assert one.target == UPLINK_TABLES[one.route.all_nexthops[0].device]
        if one.already_there:
            assert any(
                each.table == one.target.table and each.destination == one.route.destination for each in all_routes
            )
        if one.ours_wins:
            assert any(each.table == one.target.table and each.protocol == RTPROT_NFTPOLICY for each in all_routes)
        if one.is_connected:
            assert not any(way.gateway for way in one.route.all_nexthops)
            assert one.route.expires is None


def test_wide_route_is_not_connected() -> None:
    """Take half of the Internet as an on-link route: no address is in just that network."""
    half = Route(6, 254, "::/1", device="wan0", metric=256, protocol=2)
    (stray,) = route_placement.plan_moves(UPLINK_TABLES, [half], ADDRESSES).misplaced
    assert (stray.is_connected, stray.new_protocol) == (False, route_placement.RTPROT_RA)
