# SPDX-License-Identifier: BSD-2-Clause
"""nftpolicy probe [FILE]"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..phrases import and_more
from .common import EXIT_REFUTED, EXIT_UNKNOWN, last_policy, read_policy, root_needed, this_kernel
from .options import AppliedPolicyFile, PrintJson, UplinkDevices, UplinkMarks
from .plain_output import print_json
from .render.terminal import make_console, make_table, styled
from .uplink_options import uplinks_from_options

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ..policy.objects import Policy
    from ..runtime.probe.report import DeviceResult, ForwardedResult, ProbeReport, ProbeResult

_MOST_LEAKS = 6  # kinds of leaking probes of which one packet is printed
_USAGE = "nftpolicy probe FILE, or its uplinks: nftpolicy probe --uplink wan=eth0 --mark 0x1/0x1"
_NOT_TESTED = (
    "AF_PACKET sockets with PACKET_QDISC_BYPASS, and AF_XDP: no packet capture here sees them",
    "packets of the kernel itself: use 'nftpolicy verify --live'",
)
_PUBLISHED = "requests to the ports of [publish]: they would reach the server"
# Verdict of a probe -> its label and colour in the table.
_VERDICTS = {
    "leaked": ("LEAKED", "red"),
    "blocked": ("blocked", "green"),
    "stopped": ("stopped", "green"),
    "elsewhere": ("left by", "green"),
    "not tested": ("not tested", "yellow"),
}
_FAMILIES = {4: "IPv4", 6: "IPv6", 0: "not IP"}


def command(
    file: AppliedPolicyFile = None,
    uplink: UplinkDevices = None,
    mark: UplinkMarks = None,
    as_json: PrintJson = False,
) -> None:
    """Send harmless probes and capture any that leak.

    Exits with 1 if one leaves by an uplink that must not.
    """
    uplinks = uplinks_from_options(file, uplink or (), mark or (), ())
    policy = read_policy(file)[0] if file is not None else None
    kernel = this_kernel()
    if policy is None and not uplinks:
        policy, _ = last_policy(_USAGE)
    from ..kernel.netlink.rtnetlink import Rtnetlink
    from ..runtime.probe.report import LEAKS, NO_LEAK
    from ..runtime.probe.run import probe

    try:
        report = probe(kernel, Rtnetlink().devices(), policy or uplinks)
    except PermissionError:
        raise root_needed("CAP_NET_RAW") from None
    if as_json:
        print_json(_report_json(report, policy, file))
    else:
        _print_report(report, policy, file)
    if report.verdict != NO_LEAK:
        raise typer.Exit(EXIT_REFUTED if report.verdict == LEAKS else EXIT_UNKNOWN)


# --- phrases ----------------------------------------------------------------------------------


def _headline(report: ProbeReport, policy: Policy | None) -> str:
    """Return the verdict in one sentence."""
    results = report.results
    kinds = len({result.probe.probe_type.name for result in results})
    name = f"{policy.name}: " if policy else ""
    devices = ", ".join(f"{device.target.uplink} ({device.target.device})" for device in report.devices)
    size = f"{len(results)} probes of {kinds} kinds, {report.seconds} s"
    if report.leaks:
        return f"LEAKS: {name}{len(report.leaks)} of {size}"
    if report.verdict == "inconclusive":
        return f"inconclusive: {name}no leak was seen, but the capture is not reliable ({size})"
    return f"held: {name}no forbidden packet left by {devices} ({size})"


def _not_tested(policy: Policy | None) -> list[str]:
    return [*_NOT_TESTED, *([_PUBLISHED] if policy and policy.publish else [])]


def _explain_command(result: ProbeResult, file: Path | None) -> str | None:
    """Return the command that traces a probe; None if its options cannot describe it."""
    from ..runtime.probe.probe_types import explain_packet
    from .render.proof_report import explain_options

    described = explain_packet(result.probe, result.packet)
    if described is None:
        return None
    policy = [str(file)] if file and str(file) != "-" else []
    return shlex.join(["nftpolicy", "explain", *policy, *explain_options(described)])


def _sender(result: ProbeResult) -> str:
    from ..runtime.probe.probe_types import OTHER_MACHINE

    probe_packet = result.probe.packet
    if result.probe.sender == OTHER_MACHINE:
        return f"{OTHER_MACHINE}, by {probe_packet.device}"
    return f"user {probe_packet.uid}, group {probe_packet.gid}" + (
        f", mark {probe_packet.mark:#x}" if probe_packet.mark else ""
    )


# --- text -------------------------------------------------------------------------------------


def _print_report(report: ProbeReport, policy: Policy | None, file: Path | None) -> None:
    """Print the verdict, a table of kinds for each device, the controls, and the leaks."""
    from rich.text import Text

    console = make_console(soft_wrap=True)
    colour = {"held": "green", "leaks": "red"}.get(report.verdict, "yellow")
    console.print(Text(_headline(report, policy), style=colour))
    for fault in report.faults:
        console.print(Text(f"  uncertain  {fault}", style="yellow"))
    for note in report.notes:
        console.print(Text(f"  note       {note}"))
    for title, results in _result_groups(report):
        console.print()
        console.print(_kind_table(title, results))
    if any(arrival.results for arrival in report.forwarded):
        console.print()
        console.print(_forwarded_table(report))
    if any(device.controls for device in report.devices):
        console.print()
        console.print(_control_table(report))
    lines = [*_leak_lines(report, file), "", "not tested:", *(f"  {item}" for item in _not_tested(policy))]
    console.print("\n".join(lines))


def _result_groups(report: ProbeReport) -> Iterator[tuple[str, Sequence[ProbeResult]]]:
    """Yield a title and results: routed probes first, then those bound to each device."""
    yield "routed normally", report.routed
    for device in report.devices:
        for name in device.target.captured_devices:
            yield f"by {name}", [result for result in device.results if result.probe.device == name]


def _kind_table(title: str, results: Sequence[ProbeResult]) -> Table:
    families = list(_FAMILIES) if any(not result.probe.packet.family for result in results) else [4, 6]
    table = make_table(title, *(_FAMILIES[family] for family in families))
    for kind in dict.fromkeys(result.probe.probe_type for result in results):
        of_kind = [result for result in results if result.probe.probe_type == kind]
        cells = [[result for result in of_kind if result.probe.packet.family == family] for family in families]
        table.add_row(kind.title, *map(_cell, cells))
    return table


def _cell(results: Sequence[ProbeResult]) -> Text | str:
    """Return the verdicts of one kind in one family, by sender if they differ."""
    from rich.text import Text

    verdicts = {result.probe.packet.uid: _verdict_text(result) for result in results}
    if len({verdict.plain for verdict in verdicts.values()}) < 2:
        return next(iter(verdicts.values()), "-")
    return Text("; ").join(Text(f"user {uid}: ") + verdict for uid, verdict in verdicts.items())


def _forwarded_table(report: ProbeReport) -> Table:
    """Return a table of counts; the JSON has each packet."""
    table = make_table("packets of other machines", "IPv4", "IPv6")
    for arrival in report.forwarded:
        cells = [[result for result in arrival.results if result.probe.packet.family == family] for family in (4, 6)]
        if arrival.results:
            table.add_row(f"arriving by {arrival.device}", *map(_count_cell, cells))
    return table


def _count_cell(results: Sequence[ProbeResult]) -> Text | str:
    from rich.text import Text

    verdicts = [_verdict_text(result) for result in results]
    counts = Counter(verdict.plain for verdict in verdicts)
    first = {verdict.plain: verdict for verdict in reversed(verdicts)}
    return Text("; ").join(Text(f"{count} ") + first[plain] for plain, count in counts.items()) if counts else "-"


def _verdict_text(result: ProbeResult) -> Text:
    word, colour = _VERDICTS[result.verdict]
    detail = ", ".join(result.captured_on) if result.verdict == "leaked" else result.detail
    return styled(word, colour, f" {detail}" if detail else "")


def _control_table(report: ProbeReport) -> Table:
    from ..runtime.probe.probe_types import FAMILIES

    table = make_table("control: packets that may leave", "IPv4", "IPv6")
    for device in report.devices:
        for name in device.target.captured_devices:
            table.add_row(f"by {name}", *(_control_cell(device, name, family) for family in FAMILIES))
    for arrival in report.forwarded:
        for forward in dict.fromkeys(control.forward for control in arrival.controls):
            cells = (_forward_cell(arrival, (forward, family)) for family in FAMILIES)
            table.add_row(f"arriving by {arrival.device}, forward {forward}", *cells)
    return table


def _forward_cell(arrival: ForwardedResult, key: tuple[str, int]) -> Text | str:
    controls = [control for control in arrival.controls if control.key == key]
    for control in controls:
        if control.captured:
            return styled("seen", "green", f": {control.probe.probe_type.title}")
    return styled("not seen", "yellow") if controls else "-"


def _control_cell(device: DeviceResult, name: str, family: int) -> Text | str:
    control = device.captured_control(family, name)
    if control:
        return styled("seen", "green", f": {control.probe.probe_type.title} with the mark, {control.sender}")
    is_sent = any(control.key == (name, family) for control in device.controls)
    return styled("not seen", "yellow") if is_sent else "-"


def _leak_lines(report: ProbeReport, file: Path | None) -> Iterator[str]:
    kinds: dict[tuple[str, str | None], list[ProbeResult]] = {}
    for result in report.leaks:
        kinds.setdefault((result.probe.probe_type.name, result.probe.device), []).append(result)
    for results in list(kinds.values())[:_MOST_LEAKS]:
        first = results[0]
        count = f", {and_more(len(results) - 1)}" if len(results) > 1 else ""
        detail = f" ({first.detail})" if first.detail else ""
        yield ""
        yield f"LEAKED by {', '.join(first.captured_on)}{detail}: {first.probe.probe_type.title}"
        yield f"  packet  {first.packet}, from {_sender(first)}{count}"
        yield f"  next    {_explain_command(first, file) or 'nft list ruleset'}"
    if len(kinds) > _MOST_LEAKS:
        yield f"\n{and_more(len(kinds) - _MOST_LEAKS, 'kind')}: --json"


# --- JSON -------------------------------------------------------------------------------------


def _report_json(report: ProbeReport, policy: Policy | None, file: Path | None) -> dict[str, Any]:
    """Return the report as JSON; nftpolicy(1) documents the keys."""
    return {
        "policy": policy.name if policy else None,
        "verdict": report.verdict,
        "seconds": report.seconds,
        "uncertain": report.faults,
        "devices": [_device_json(device, file) for device in report.devices],
        "routed": [_result_json(result, file) for result in report.routed],
        "forwarded": [_forwarded_json(arrival, file) for arrival in report.forwarded],
        "notes": report.notes,
        "not_tried": _not_tested(policy),
    }


def _device_json(device: DeviceResult, file: Path | None) -> dict[str, Any]:
    return {
        "uplink": device.target.uplink,
        "device": device.target.device,
        "mark": device.target.mark,
        "watched": list(device.target.captured_devices),
        "verdict": device.verdict,
        "uncertain": list(device.faults),
        "controls": [
            {
                "device": control.key[0],
                "family": control.key[1],
                "kind": control.probe.probe_type.title,
                "by": control.sender,
                "destination": control.probe.packet.destination,
                "seen": control.captured,
            }
            for control in device.controls
        ],
        "probes": [_result_json(result, file) for result in device.results],
    }


def _forwarded_json(arrival: ForwardedResult, file: Path | None) -> dict[str, Any]:
    return {
        "device": arrival.device,
        "uncertain": list(arrival.faults),
        "controls": [
            {
                "forward": control.forward,
                "family": control.probe.packet.family,
                "kind": control.probe.probe_type.title,
                "source": control.probe.packet.source,
                "destination": control.probe.packet.destination,
                "seen": control.captured,
                "detail": control.reason,
            }
            for control in arrival.controls
        ],
        "probes": [{**_result_json(result, file), "source": result.probe.packet.source} for result in arrival.results],
    }


def _result_json(result: ProbeResult, file: Path | None) -> dict[str, Any]:
    probe_packet = result.probe.packet
    return {
        "kind": result.probe.probe_type.name,
        "title": result.probe.probe_type.title,
        "family": probe_packet.family or None,
        "device": probe_packet.device,
        "uid": probe_packet.uid,
        "gid": probe_packet.gid,
        "mark": probe_packet.mark,
        "destination": probe_packet.destination if probe_packet.family else None,
        "result": result.verdict,
        "detail": result.detail,
        "seen": list(result.captured_on),
        "packet": str(result.packet) if result.packet else None,
        "explain": _explain_command(result, file) if result.verdict == "leaked" else None,
    }
