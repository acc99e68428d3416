# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy import openwrt DIR"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .common import EXIT_BAD_INPUT, Failure, write_policy
from .findings_text import source_locator
from .options import RouteFiles, RuleFiles, RulesetFile
from .parameters import argument, option
from .plain_output import print_json
from .state_files import state_from_files

if TYPE_CHECKING:
    from ..runtime.import_openwrt import ImportResult, UnmarkedLeak


def command(
    dir: Annotated[Path, argument(metavar="DIR", help="A router's /etc/config, or a directory with etc/config in it.")],
    out: Annotated[Path | None, option(help="Write the policy to this file, not to standard output.")] = None,
    force: Annotated[bool, option("--force", help="Replace the file of --out if it differs.")] = False,
    uplink: Annotated[
        list[str] | None,
        option(help="UCI interface that leads to an uplink; may be repeated."),
    ] = None,
    ruleset: RulesetFile = None,
    rules: RuleFiles = None,
    routes: RouteFiles = None,
    as_json: Annotated[bool, option("--json", help="Print the policy and the whole report as JSON.")] = False,
) -> None:
    """Draft a policy from a router's UCI files.

    The report lists what leaks now. Needs no root and changes nothing in DIR.
    """
    state = state_from_files(ruleset, rules or (), routes or ())
    from ..importers.openwrt.uplinks import NotImportable
    from ..runtime.import_openwrt import RouterConfigError, import_config, read_router_config

    try:
        configuration = read_router_config(dir)
    except RouterConfigError as error:
        raise Failure(str(error), EXIT_BAD_INPUT) from None
    try:
        result = import_config(configuration, uplink or [], state)
    except NotImportable as error:
        raise Failure(f"{configuration.directory}: {error}", EXIT_BAD_INPUT) from None
    if out is not None:
        write_policy(out, result.proposal.text.encode(), force)
    if as_json:
        _print_json(result, bool(ruleset))
        return
    report = "\n".join(_report_lines(result, bool(ruleset)))
    if out is None:
        print(result.proposal.text, end="")
        print(report, file=sys.stderr)
    else:
        print(report)


def _report_lines(result: ImportResult, has_ruleset: bool) -> Iterator[str]:
    """Yield the report; `has_ruleset` is True if --ruleset was given."""
    from ..proof.verdict import REFUTED
    from ..runtime.import_openwrt import leak_route
    from .render.proof_report import section_lines

    draft, verdict = result.proposal, result.present.proof.verdict
    uplinks = ", ".join(f"{uplink.name} ({' '.join(uplink.devices)})" for uplink in draft.uplinks)
    word = {REFUTED: "leaks", "proved": "does not leak"}.get(verdict, "may leak")
    changes = [_with_location(note.location, note.text) for note in draft.changes]
    manual_steps = [_with_location(note.location, note.text) for note in draft.manual_steps]
    unmapped = [_with_location(note.location, note.text) for note in draft.unmapped]
    yield f"{result.directory}: the present configuration {word}: uplinks {uplinks}: {verdict}"
    yield from section_lines("packets that leave now without the uplink's mark", _leak_lines(result, leak_route))
    yield from section_lines(
        "settings that netifd or fw4 ignore", (f"{trap.location}: {trap.text}" for trap in draft.warnings)
    )
    yield from section_lines("changes that the policy makes", changes)
    yield from section_lines("manual steps before the policy is applied", manual_steps)
    yield from section_lines("configuration not carried over into the policy", unmapped)
    yield from section_lines("assumptions", _assumptions(result, has_ruleset))
    yield ""
    commands = "nftpolicy check FILE, nftpolicy compile FILE --to openwrt DIR"
    yield f"the policy: {result.proof.verdict}; next: {commands}"


def _assumptions(result: ImportResult, has_ruleset: bool) -> Iterable[str]:
    if has_ruleset:
        return result.proposal.assumptions
    return [
        *result.proposal.assumptions,
        "the firewall accepts all output (fw4's default); use --ruleset for the real one",
    ]


def _leak_lines(result: ImportResult, reason: Callable[[UnmarkedLeak], str]) -> Iterator[str]:
    from ..proof.verdict import REFUTED, describe_packet

    for path in result.leaks:
        packet = describe_packet(path.trace.packet)
        yield _with_location(path.source_line, f"{path.sender}: {packet} leaves by {path.trace.device}: {reason(path)}")
    if not result.leaks:
        for finding in result.present.proof.findings:
            if finding.verdict == REFUTED and finding.examples:
                yield describe_packet(finding.examples[0].packet)


def _with_location(location: str, text: str) -> str:
    return f"{location}: {text}" if location else text


def _print_json(result: ImportResult, has_ruleset: bool) -> None:
    from ..proof.verdict import describe_packet
    from ..runtime.import_openwrt import leak_route
    from .render.proof_report import proof_json

    draft = result.proposal
    notes = {"changes": draft.changes, "to_do": draft.manual_steps, "not_mapped": draft.unmapped}
    document: dict[str, Any] = {
        "policy": draft.text,
        "verdict": result.proof.verdict,
        "uplinks": {uplink.name: list(uplink.devices) for uplink in draft.uplinks},
        "ways_out": [
            {
                "what": path.sender,
                "packet": describe_packet(path.trace.packet),
                "uplink": path.uplink,
                "device": path.trace.device,
                "reason": leak_route(path),
                "place": path.source_line or None,
                "script": path.script(),
            }
            for path in result.leaks
        ],
        "traps": [{"place": trap.location, "text": trap.text, "all_packets": trap.severe} for trap in draft.warnings],
        **{
            key: [{"place": note.location or None, "text": note.text} for note in key_notes]
            for key, key_notes in notes.items()
        },
        "assumptions": list(_assumptions(result, has_ruleset)),
        "now": proof_json(result.present, source_locator(None)),
    }
    print_json(document)
