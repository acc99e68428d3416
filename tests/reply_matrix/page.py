"""The matrix as text: a page in Markdown. Pure."""

from collections.abc import Iterator, Mapping

from . import cells
from .cells import Cell, Network, Outcome

Matrix = Mapping[Network, Mapping[Cell, Outcome]]

_HEAD = """# Replies

A client in an uplink's network asks a server of this machine. This page lists where the replies go: measured in network
namespaces, with a policy and without one, for each kind of server and network. `script/reply-matrix` measures them, and
compares each with the trace of the same reply in the model; `script/reply-matrix --write docs/replies.md` writes this page.

| Letter | The reply |
|---|---|
| `a` | leaves by the device of the request, from the address that was asked |
| `-` | leaves by no device |
| `S` | leaves by another device, or from another address |

Each cell has four letters:

1. The first reply.
2. One without a new request, after the conntrack entry has ended.
3. One without a new request, after all conntrack entries were deleted.
4. For TCP, data of the server before the client sends any; for UDP, the reply to a new request after 3.

Ping has no fourth letter, since the kernel sends nothing without a request.

The networks of the uplinks are private, and their routes are in the uplinks' tables, where `nftpolicy watch` keeps them.
The columns are the default route of table main: by a device inside, none, or by an uplink, with the networks of the uplinks
beside it, as without `watch`. With two uplinks the client asks by the second one; both answer the same ports.

A wildcard server beyond the gateway, while a default route leads inside, replies if its port is `exclusive`
(nftpolicy.toml(5), Answers): then the uplink's default route counts for the port. That is not in these tables; see
`tests/leaks/test_udp_replies.py`.
"""


def page(matrix: Matrix) -> str:
    """Return the page."""
    return _HEAD + "".join(_section(uplinks, matrix) for uplinks in cells.UPLINKS)


def faults(matrix: Matrix) -> Iterator[str]:
    """Yield each stray reply under a policy, and each reply that the model does not predict."""
    for network, outcomes in matrix.items():
        for cell, outcome in outcomes.items():
            if network.has_policy and outcome.seen == cells.STRAY:
                yield f"stray: {network}, {cell}: {', '.join(outcome.places)}"
            if not outcome.agrees:
                yield f"not predicted: {network}, {cell}: {outcome.seen}, in the model {outcome.predicted}"


def _section(uplinks: str, matrix: Matrix) -> str:
    columns = [
        outcomes
        for default in cells.DEFAULTS
        for has_policy in (True, False)
        if (outcomes := matrix.get(Network(uplinks, default, has_policy))) is not None
    ]
    if not columns:
        return ""
    titles = [f"{default}, {state}" for default in cells.DEFAULTS for state in ("policy", "no policy")]
    lines = [f"\n## {uplinks[0].upper()}{uplinks[1:]}\n", _row("Server", "Client", *titles), _row(*["---"] * 8)]
    for protocol in cells.PROTOCOLS:
        for client in cells.CLIENTS:
            texts = [_letters(outcomes, protocol, client) for outcomes in columns]
            if any(texts):
                lines.append(_row(protocol, client, *texts))
    return "\n".join(lines) + "\n"


def _letters(outcomes: Mapping[Cell, Outcome], protocol: str, client: str) -> str:
    """Return the letters of both families, once if they are equal."""
    by_family = {
        family: "".join(
            cells.LETTERS[outcome.seen]
            for moment in cells.MOMENTS
            if (outcome := outcomes.get(Cell(family, protocol, client, moment))) is not None
        )
        for family in cells.FAMILIES
    }
    texts = {text for text in by_family.values() if text}
    if len(texts) > 1:
        return ", ".join(f"IPv{family} `{text}`" for family, text in by_family.items())
    return f"`{texts.pop()}`" if texts else ""


def _row(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"
