"""Moved routes: what the record has after moves, and what is put back from it, in order."""

import errno
import socket
import struct

import pytest
from attrs import evolve

from nftpolicy.kernel.netlink.attributes import attribute
from nftpolicy.kernel.netlink.route_mover import KernelRoute, RouteListing, decode_kernel_route
from nftpolicy.runtime.apply.moved_routes import MovedRoute, MovedRouteFile, restore_routes, updated_record

DEVICE = "lo"  # the names of devices come from this machine
MAIN, TABLE = 254, 1


def kernel_route(destination="default", gateway="192.0.2.1", table=MAIN, protocol=3, flags=0, metric=0):
    network, _, length = destination.partition("/")
    head = struct.pack("=BBBBBBBBI", socket.AF_INET, int(length or 0), 0, 0, table, protocol, 0, 1, flags)
    parts = [(4, struct.pack("=I", socket.if_nametoindex(DEVICE))), (6, struct.pack("=I", metric))]
    parts += [(5, socket.inet_aton(gateway))] if gateway else []
    parts += [(1, socket.inet_aton(network))] if length else []
    return decode_kernel_route(head + b"".join(attribute(*part) for part in parts))


DEFAULT, CONNECTED = kernel_route(), kernel_route("192.0.2.0/24", None, protocol=2)


def copy_of(original, **changes):
    route = evolve(original.route, table=TABLE, onlink=bool(original.route.gateway), **changes)
    return KernelRoute(route, original.message)


class RouteMemory:
    """Routes over the uplinks' devices, which takes routes back."""

    def __init__(self, *routes, refused=()):
        self.routes, self.refused, self.restored, self.deleted = list(routes), refused, [], []

    def list_routes(self, devices):
        return RouteListing([one for one in self.routes if one.route.device in devices])

    def restore(self, kernel_route, expires, beside=False):
        if kernel_route in self.refused:
            return errno.ENETUNREACH
        self.restored.append((kernel_route, expires))
        return 0

    def delete(self, kernel_route):
        self.deleted.append(kernel_route)
        return 0


@pytest.fixture
def file(tmp_path):
    return MovedRouteFile(tmp_path)


def moved(*originals, **options):
    return tuple(MovedRoute(original, TABLE, **options) for original in originals)


def test_record_outlasts_a_process_with_all_attributes(file) -> None:
    file.write(moved(DEFAULT, CONNECTED))
    assert file.read() == moved(DEFAULT, CONNECTED)
    assert [one.original.message for one in file.read()] == [DEFAULT.message, CONNECTED.message]
    file.write(())
    assert file.read() == ()


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", '[{"message": "00", "table": 1, "copied": true}]', '[{"message": "x"}]']
)
def test_damaged_record_has_no_routes(file, text) -> None:
    file.write(moved(DEFAULT))
    (file.state_directory / "routes" / "moved.json").write_text(text)
    assert file.read() == ()


def test_record_is_in_a_subdirectory(file) -> None:
    file.write(moved(DEFAULT))
    assert [path.is_dir() for path in file.state_directory.iterdir()] == [True]


def test_connected_route_is_put_back_before_gateways(file) -> None:
    file.write(moved(DEFAULT, CONNECTED))
    memory = RouteMemory(copy_of(DEFAULT), copy_of(CONNECTED))
    result = restore_routes(memory, file)
    assert memory.restored == [(CONNECTED, None), (DEFAULT, None)]
    assert memory.deleted == [copy_of(CONNECTED), copy_of(DEFAULT)]
    assert result.lines[1] == "route put back: default via 192.0.2.1 dev lo table 254 proto 3"
    assert (result.warnings, file.read()) == ((), ())


def test_route_without_its_copy_is_forgotten(file) -> None:
    file.write(moved(DEFAULT))
    memory = RouteMemory(copy_of(DEFAULT, gateway="192.0.2.9"))  # the network has another router now
    assert restore_routes(memory, file).lines == ()
    assert (memory.restored, memory.deleted, file.read()) == ([], [], ())


def test_copy_of_route_that_stayed_is_deleted_silently(file) -> None:
    file.write(moved(CONNECTED))
    memory = RouteMemory(CONNECTED, copy_of(CONNECTED))
    assert restore_routes(memory, file).lines == ()
    assert (memory.restored, memory.deleted, file.read()) == ([], [copy_of(CONNECTED)], ())


def test_copied_route_that_was_withdrawn_is_not_put_back(file) -> None:
    """Delete the copy that `apply` made: another program has deleted the route, which stayed in its own table."""
    file.write(moved(CONNECTED, is_moved=False))
    assert file.read() == moved(CONNECTED, is_moved=False)
    memory = RouteMemory(copy_of(CONNECTED))
    assert restore_routes(memory, file).lines == ()
    assert (memory.restored, memory.deleted, file.read()) == ([], [copy_of(CONNECTED)], ())


def test_route_behind_a_route_of_the_policy_is_put_back(file) -> None:
    file.write(moved(DEFAULT, is_copied=False))
    memory = RouteMemory()  # the route of the policy was removed with the policy
    assert restore_routes(memory, file).lines
    assert memory.deleted == []


def test_refused_route_stays_recorded_with_a_warning(file) -> None:
    file.write(moved(DEFAULT, CONNECTED))
    memory = RouteMemory(copy_of(DEFAULT), copy_of(CONNECTED), refused=(DEFAULT,))
    result = restore_routes(memory, file)
    assert "default" in result.warnings[0]
    assert "Network is unreachable" in result.warnings[0]
    assert file.read() == moved(DEFAULT)


def test_routes_over_uplinks_of_the_new_policy_stay(file) -> None:
    file.write(moved(DEFAULT))
    memory = RouteMemory(copy_of(DEFAULT))
    assert restore_routes(memory, file, (DEVICE,)).lines == ()
    assert (memory.restored, file.read()) == ([], moved(DEFAULT))


def test_restored_route_gets_remaining_lifetime(file) -> None:
    file.write(moved(DEFAULT))
    memory = RouteMemory(copy_of(DEFAULT, expires=77))
    restore_routes(memory, file)
    assert memory.restored == [(DEFAULT, 77)]


def record(entries, present, moves=(), devices=(DEVICE,), too_many=()):
    return updated_record(entries, RouteListing(list(present), too_many), devices, moves)


def test_withdrawn_route_leaves_the_record() -> None:
    assert record(moved(DEFAULT, CONNECTED), [copy_of(CONNECTED)]) == moved(CONNECTED)


def test_unlisted_routes_stay_in_the_record() -> None:
    assert record(moved(DEFAULT), [], devices=("other0",)) == moved(DEFAULT)
    assert record(moved(DEFAULT), [], too_many=((DEVICE, 4),)) == moved(DEFAULT)
    assert record(moved(DEFAULT), [], too_many=((DEVICE, 6),)) == ()


def test_new_router_takes_the_place_of_the_old_one() -> None:
    new = kernel_route(gateway="192.0.2.9")
    assert record(moved(DEFAULT), [copy_of(DEFAULT), new], moved(new)) == moved(new)


def test_route_that_moves_on_keeps_its_first_table() -> None:
    onward = MovedRoute(copy_of(DEFAULT), 2)
    assert record(moved(DEFAULT), [copy_of(DEFAULT)], [onward]) == (MovedRoute(DEFAULT, 2),)


def test_end_of_a_policy_route_ends_the_record_of_another() -> None:
    ours = copy_of(DEFAULT, gateway="192.0.2.3", protocol=78)
    assert record(moved(DEFAULT, is_copied=False), [ours]) == moved(DEFAULT, is_copied=False)
    assert record(moved(DEFAULT, is_copied=False), []) == ()
