"""Route lookups that a kernel has answered, for tests without a kernel.

    python -m tests.kernel.recorded_lookups --write

records them anew, as root: on the generated rules and routes of lookup_differential.py, and the cases of
test_lookup_differential.py. The kernel is named in the file.
"""

import json
import lzma
import os
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import asdict, evolve, frozen

from nftpolicy.kernel.netlink.rtnetlink import RouteLookups, Rtnetlink
from nftpolicy.model.fib.router import Router
from nftpolicy.netstate.formats.snapshot_codec import decode_value, encode_value
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
from tests.kernel.test_lookup_differential import FOUND, FOUND_FRESH, PLAIN
from tests.lab.netns import Namespace

FILE = Path(__file__).parents[1] / "fixtures" / "route_lookups.json.xz"
STATES, QUERIES = 120, 40
SEED = 7
# Packets that random_query() does not ask for: to all hosts, and without a source.
ARRIVING = tuple(
    Query(4, destination, source, iif="a0", protocol=17)
    for destination in ("255.255.255.255", "0.0.0.0", "10.1.0.1", "203.0.113.77")
    for source in (None, "10.9.9.9", "224.0.0.5", "127.0.0.1")
)
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
    return [
        (decode_value(state, NetState), [_decode(*lookup) for lookup in lookups])
        for state, lookups in document["states"]
    ]


def _decode(query: dict[str, object], answer: dict[str, object] | int, is_open: bool) -> RecordedLookup:
    found = answer if isinstance(answer, int) else Route(**answer)  # type: ignore[arg-type]
    return RecordedLookup(evolve(_PLAIN, **query), found, is_open)


def _record(has_rules: bool, states: int, cases: Iterable[tuple[list[str], Query, object]]) -> list[object]:
    links, recorded_states = Rtnetlink(), []
    with RouteLookups() as lookups:

        def record(commands: list[str], queries: Iterable[Query]) -> None:
            install(commands, has_rules)
            state = read_state(links)
            recorded_states.append([encode_value(state), list(_answers(Router(state), lookups, queries))])

        for number in range(states):
            pick = random.Random(f"{SEED}/{number}")
            record(random_commands(pick, has_rules), [*ARRIVING, *(random_query(pick) for _ in range(QUERIES))])
        pick = random.Random(SEED)
        for commands, query, _ in cases:
            record([*PLAIN, *commands], [query, *(random_query(pick) for _ in range(5))])
    return recorded_states


def _answers(router: Router, lookups: RouteLookups, queries: Iterable[Query]) -> Iterator[list[object]]:
    for query in queries:
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
    for has_rules, number, cases in ((True, STATES, FOUND), (False, STATES // 6, FOUND_FRESH)):
        with Namespace("recorded") as space:
            prepare(space)
            states += space.call(_record, has_rules, number, list(cases.values()), timeout=300)
    document = {"kernel": os.uname().release, "states": states}
    FILE.write_bytes(lzma.compress(json.dumps(document, sort_keys=True).encode()))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    _write()
