"""Real kernel of a test: a network namespace with a few devices, entered by forked children."""

import contextlib

import pytest
from attrs import evolve

from nftpolicy.compiler import object_names
from nftpolicy.netstate.routing import RTPROT_NFTPOLICY
from nftpolicy.netstate.state import NetState
from nftpolicy.planner.plan import plan
from tests.lab.netns import Namespace
from tests.policy_strategies import COMMON


@contextlib.contextmanager
def kernel():
    """Yield a namespace with the devices of `COMMON`. Skip the test if no namespace can be made."""
    try:  # here rather than in each forked child, where it would take its time again
        import nftables  # noqa: F401
        import pyroute2  # noqa: F401
    except ImportError:
        pytest.skip("the nftables bindings of the distribution are missing")
    try:
        namespace = Namespace("kernel")
    except (OSError, ValueError) as error:
        pytest.skip(f"no network namespace can be made here: {error}")
    with namespace:
        namespace.ip(*(f"link add {device} type veth peer name peer{index}" for index, device in enumerate(COMMON)))
        namespace.ip(*(f"link set {device} up" for device in COMMON))
        yield namespace


def linux():
    """Return the kernel, inside of the namespace."""
    from nftpolicy.kernel.linux import Linux

    return Linux()


def observe(kernel_access, paths=()):
    """Return all objects of nftpolicy that a kernel holds."""
    return kernel_access.read_own(object_names.TABLE, object_names.FAMILIES, RTPROT_NFTPOLICY, paths)


def clear(kernel_access):
    """Remove all objects of nftpolicy."""
    for step in plan(observe(kernel_access), NetState()).steps:
        kernel_access.apply_step(step)


def normal(state):
    """Return a state in one canonical order."""
    return NetState(
        tuple(sorted((normal_table(one) for one in state.tables), key=lambda one: one.key)),
        tuple(sorted(state.rules, key=lambda one: (one.family, one.priority, repr(one)))),
        tuple(sorted(state.routes, key=repr)),
        tuple(sorted(state.sysctls, key=lambda one: one.path)),
    )


def normal_table(table):
    """Return a table in one canonical order."""
    chains, sets, counters = (
        sorted(one, key=lambda item: item.name) for one in (table.chains, table.sets, table.counters)
    )
    return evolve(table, chains=tuple(chains), sets=tuple(sets), counters=tuple(counters))
