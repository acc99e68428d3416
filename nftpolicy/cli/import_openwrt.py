# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy import openwrt DIR"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from .common import BAD_INPUT, REFUSED, Failure
from .desk import ROUTES, RULES, RULESET, desk_state

if TYPE_CHECKING:
    from ..runtime.imported import Imported


def command(
    dir: Path = typer.Argument(help="A router's /etc/config, or a folder with etc/config in it."),
    out: Optional[Path] = typer.Option(None, help="Write the policy there, not to standard output."),  # noqa: UP045
    force: bool = typer.Option(False, "--force", help="Replace a file that is there and says something else."),
    uplink: list[str] = typer.Option([], help="An interface that leads to an uplink; may be repeated."),
    ruleset: Optional[Path] = typer.Option(None, help=RULESET),  # noqa: UP045
    rules: list[str] = typer.Option([], help=RULES),
    routes: list[str] = typer.Option([], help=ROUTES),
    json: bool = typer.Option(False, "--json", help="Print JSON: the policy, and the whole report."),
) -> None:
    """Make a policy of a router's UCI files, and say what leaks there now. Needs no root and changes nothing there."""
    given = desk_state(ruleset, rules, routes)
    from ..openwrt.roles import NotUsable
    from ..runtime.imported import NoConfiguration, folder, imported

    try:
        read = folder(dir)
    except NoConfiguration as error:
        raise Failure(str(error), BAD_INPUT) from None
    try:
        found = imported(read, uplink, given)
    except NotUsable as error:
        raise Failure(f"{read.root}: {error}", BAD_INPUT) from None
    if out is not None:
        _write(found, out, force)
    if json:
        _print_json(found, bool(ruleset))
        return
    report = "\n".join(lines(found, bool(ruleset)))
    if out is None:
        print(found.proposal.text, end="")
        print(report, file=sys.stderr)
    else:
        print(report)


def _write(found: Imported, out: Path, force: bool) -> None:
    text = found.proposal.text
    try:
        if out.exists() and not force and out.read_text(errors="replace") != text:
            raise Failure(f"{out}: there is another file; --force replaces it", REFUSED)
        out.write_text(text)
    except OSError as error:
        raise Failure(f"{out}: can't be written: {error.strerror}", REFUSED) from None


def lines(found: Imported, looked: bool) -> Iterator[str]:
    """The report for a person. `looked`: the ruleset was given."""
    from ..proof.verdict import REFUTED
    from ..runtime.imported import reason
    from .report import listed

    proposal, verdict = found.proposal, found.now.proof.verdict
    uplinks = ", ".join(f"{one.name} ({' '.join(one.devices)})" for one in proposal.uplinks)
    word = "leaks" if verdict == REFUTED else "does not leak" if verdict == "proved" else "may leak"
    yield f"{found.folder}: as it is now it {word}: uplinks {uplinks}: {verdict}"
    yield from listed("what leaves now without the uplink's mark", _shown_ways(found, reason))
    yield from listed("what does not do what it says", (f"{one.place}: {one.text}" for one in proposal.traps))
    yield from listed("what the policy changes", (_at(one.place, one.text) for one in proposal.changes))
    yield from listed("what is to be done before it is applied", (_at(one.place, one.text) for one in proposal.doing))
    yield from listed("what no part of the policy comes of", (_at(one.place, one.text) for one in proposal.unmapped))
    yield from listed("what this rests on", _assumed(found, looked))
    yield ""
    yield f"the policy: {found.proof.verdict}; next: nftpolicy check FILE, nftpolicy compile FILE --to openwrt FOLDER"


def _assumed(found: Imported, looked: bool) -> Iterable[str]:
    firewall = [] if looked else ["the firewall lets out everything (fw4's default); --ruleset gives the real one"]
    return [*found.proposal.assumed, *firewall]


def _shown_ways(found: Imported, reason: Any) -> Iterator[str]:
    from ..proof.verdict import described

    for way in found.ways:
        yield _at(way.place, f"{way.what}: {described(way.walk.packet)} leaves by {way.walk.device}: {reason(way)}")
    if not found.ways:
        from ..proof.verdict import REFUTED

        for one in found.now.proof.findings:
            if one.verdict == REFUTED and one.examples:
                yield described(one.examples[0].packet)


def _at(place: str, text: str) -> str:
    return f"{place}: {text}" if place else text


def _print_json(found: Imported, looked: bool) -> None:
    import json

    from ..proof.verdict import described
    from ..runtime.imported import reason
    from .picture import nowhere
    from .report import as_json

    proposal = found.proposal
    notes = {"changes": proposal.changes, "to_do": proposal.doing, "not_mapped": proposal.unmapped}
    document = {
        "policy": proposal.text,
        "verdict": found.proof.verdict,
        "uplinks": {one.name: list(one.devices) for one in proposal.uplinks},
        "ways_out": [
            {
                "what": one.what,
                "packet": described(one.walk.packet),
                "uplink": one.uplink,
                "device": one.walk.device,
                "reason": reason(one),
                "place": one.place or None,
                "script": one.script(),
            }
            for one in found.ways
        ],
        "traps": [{"place": one.place, "text": one.text, "all_packets": one.severe} for one in proposal.traps],
        **{key: [{"place": one.place or None, "text": one.text} for one in listed] for key, listed in notes.items()},
        "assumptions": list(_assumed(found, looked)),
        "now": as_json(found.now, nowhere),
    }
    print(json.dumps(document, indent=1))
