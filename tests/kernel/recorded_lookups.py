"""Route lookups that a kernel has answered, for tests without a kernel.

    python -m tests.kernel.recorded_lookups --write

records them anew, as root, on the generated rules and routes of lookup_differential.py. The kernel is named in the
file.
"""

import json
import lzma
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from attrs import asdict, evolve, frozen

from nftpolicy.kernel.netlink.rtnetlink import RouteLookups, Rtnetlink
from nftpolicy.model.fib.router import Router
from nftpolicy.netstate.formats.snapshot_codec import decode_state, encode_state
from nftpolicy.netstate.routing import Route
from nftpolicy.netstate.state import NetState
from tests.kernel.lookup_differential import (
    Query,
    install,
    kernel_answer,
    model_answer,
    prepare,
    random_commands,
    random_query,
    read_state,
)
from tests.lab.netns import Namespace

FILE = Path(__file__).parents[1] / "fixtures" / "route_lookups.json.xz"
STATES, QUERIES = 60, 40
SEED = 7
_PLAIN = Query(4, "")


@frozen
class RecordedLookup:
    """A query, the kernel's route or errno, and True if the model cannot know which one the kernel takes."""

    query: Query
    answer: Route | int
    is_open: bool


def recorded() -> list[tuple[NetState, list[RecordedLookup]]]:
    """Return the recorded states with their lookups."""
    document = json.loads(lzma.decompress(FILE.read_bytes()))
    return [(decode_state(state), [_decode(*lookup) for lookup in lookups]) for state, lookups in document["states"]]


def _decode(query: dict[str, object], answer: dict[str, object] | int, is_open: bool) -> RecordedLookup:
    found = answer if isinstance(answer, int) else Route(**answer)  # type: ignore[arg-type]
    return RecordedLookup(evolve(_PLAIN, **query), found, is_open)


def _record(has_rules: bool, states: int) -> list[object]:
    links, recorded_states = Rtnetlink(), []
    with RouteLookups() as lookups:
        for number in range(states):
            pick = random.Random(f"{SEED}/{number}")
            install(random_commands(pick, has_rules), has_rules)
            state = read_state(links)
            recorded_states.append([encode_state(state), list(_answers(Router(state), lookups, pick))])
    return recorded_states


def _answers(router: Router, lookups: RouteLookups, pick: random.Random) -> Iterator[list[object]]:
    for _ in range(QUERIES):
        query = random_query(pick)
        kernel = kernel_answer(lookups, query)
        answer: object = kernel
        if isinstance(kernel, Route):
            answer = {
                name: getattr(kernel, name) for name in ("family", "table", "kind", "gateway", "device", "prefsrc")
            }
        words = {name: value for name, value in asdict(query).items() if value != getattr(_PLAIN, name)}
        yield [{"family": query.family, **words}, answer, model_answer(router, query).outcome == "unknown"]


def _write() -> None:
    states: list[object] = []
    for has_rules, number in ((True, STATES), (False, STATES // 6)):
        with Namespace("recorded") as space:
            prepare(space)
            states += space.call(_record, has_rules, number, timeout=300)
    document = {"kernel": os.uname().release, "states": states}
    FILE.write_bytes(lzma.compress(json.dumps(document, sort_keys=True).encode()))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    _write()
