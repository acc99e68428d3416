"""Recorded dumps of nf_tables: as files, and from this kernel.

`python -m tests.nft_messages NAME [PROGRAM]` as root records tests/fixtures/nft_bytecode/NAME.nft again, in a namespace
of its own. PROGRAM is the nft that loads it: nft 1.1 for nft-1.1.nft, else nft 1.0.6.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import nft_text
from nftpolicy.netstate.formats.nft_bytecode.ruleset import RulesetMessages

DIRECTORY = Path(__file__).parent / "fixtures/nft_bytecode"
RECORDINGS = ("ruleset", "grammar", "nft-1.1")
_DUMPS = ("tables", "chains", "rules", "sets", "objects", "flowtables")


def to_json(messages: RulesetMessages) -> dict[str, Any]:
    """Return messages as a JSON document."""
    return {
        **{name: [[family, raw.hex()] for family, raw in getattr(messages, name)] for name in _DUMPS},
        "elements": [[*key, [raw.hex() for raw in dump]] for key, dump in messages.elements.items()],
        "devices": {str(index): name for index, name in messages.devices.items()},
        "byte_order": messages.byte_order,
    }


def from_json(document: dict[str, Any]) -> RulesetMessages:
    """Return the messages of a JSON document."""
    dumps = {name: tuple((family, bytes.fromhex(raw)) for family, raw in document[name]) for name in _DUMPS}
    elements = {
        (family, table, name): tuple(map(bytes.fromhex, dump)) for family, table, name, dump in document["elements"]
    }
    devices = {int(index): name for index, name in document["devices"].items()}
    return RulesetMessages(**dumps, elements=elements, devices=devices, byte_order=document["byte_order"])


def recorded(name: str = "ruleset") -> RulesetMessages:
    """Return the messages of a recording."""
    return from_json(json.loads((DIRECTORY / f"{name}.json").read_text()))


def lifted(name: str) -> str:
    """Return the recorded text of a recording."""
    return (DIRECTORY / f"{name}.txt").read_text()


def describe(tables: tuple[nft.Table, ...]) -> str:
    """Return tables as text, with what nft's grammar cannot say."""
    lines: list[str] = []
    for table in tables:
        lines.append(f"table {table.family} {table.name} {' '.join(sorted(table.flags))}".rstrip())
        for named in (*table.sets, *table.maps):
            contents = sorted(map(str, named.elements))
            kind = " . ".join(named.type) + (f" : {' . '.join(named.data)}" if isinstance(named, nft.Map) else "")
            lines.append(f"  set {named.name} {kind} {sorted(named.flags)} {contents}")
        lines += [f"  {item}" for item in (*table.counters, *table.objects, *table.flowtables)]
        lines += [f"  unsupported {text}" for text in table.unknown]
        for chain in table.chains:
            lines.append(f"  chain {chain.name} {chain.hook or ''}".rstrip())
            for rule in chain.rules:
                comment = "" if rule.comment is None else f" # {rule.comment}"
                lines.append(f"    {nft_text.display_text(rule)}{comment}")
    return "\n".join(lines) + "\n"


def _record(name: str, program: str) -> None:
    from nftpolicy.kernel.netlink.nft_ruleset import read_messages
    from nftpolicy.netstate.formats.nft_bytecode.ruleset import decode_ruleset

    subprocess.run([program, "-f", DIRECTORY / f"{name}.nft"], check=True)
    messages = read_messages()
    (DIRECTORY / f"{name}.json").write_text(json.dumps(to_json(messages), indent=0) + "\n")
    (DIRECTORY / f"{name}.txt").write_text(describe(decode_ruleset(messages)))


if __name__ == "__main__":
    from tests.lab.netns import Namespace

    with Namespace("record") as space:
        space.call(lambda: _record(sys.argv[1], *(sys.argv[2:] or ["nft"])))
