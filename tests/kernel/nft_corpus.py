"""nft's own test rules (tests/py of its sources), through the reader of the kernel's ruleset and back.

    python -m tests.kernel.nft_corpus [--nft PROGRAM] [--packets N] DIRECTORY [FILE ...]

Each rule that this nft (or PROGRAM) and this kernel load is read by netlink, lifted, written as nft text and loaded
again. The output is a table of what is not lifted, by kind, and of rules whose second program differs in any byte.
Where nft's own listing of a rule, loaded again, gives the same second program, the rule is counted apart: nft has no
text for its first one. With --packets, the program of each rule is interpreted for N random packets, and the model of
the lifted rule must have its outcome; and two programs that differ are compared on packets. Exit status 1 if a program
differs (on packets, if they are given), the model excludes an outcome or the reader fails.
"""

import argparse
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import attrs

from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import nft_text
from nftpolicy.netstate.formats.xt_decode import decode_xt
from tests.engines import nft_dump
from tests.engines.compare_program import FAMILIES, disagreement, programs_differ, single_rule
from tests.lab.netns import Namespace

_PART = re.compile(r"(?<!\\);")
_UNKNOWN = (nft.UnknownStatement, nft.UnknownExpression, nft.UnmodelledMatch)
# Attributes of a set that name it or that only nft reads: name, types, number, comment, handle.
_SET_NAMES = frozenset({1, 2, 4, 6, 10, 13, 14, 16, 19, 20})
_ELEMENT_NAMES = frozenset({5, 6, 8})  # expiration, comment, padding
_NAMED_SET = {"lookup": (1, 4), "dynset": (1, 2), "objref": (4, 5)}  # name and number of the set, by expression


@dataclass
class TestFile:
    """A file of the corpus: commands that precede the rules, and the rules, each for one chain."""

    setup: list[str] = field(default_factory=list)
    rules: list[tuple[str, str, str, str]] = field(default_factory=list)  # family, table, chain, rule


@dataclass
class Outcome:
    """Rules by their fate; the lists hold (where, rule, reason)."""

    tried: int = 0
    loaded: int = 0
    lifted: int = 0
    equal: int = 0
    equivalent: int = 0
    relisted: list[tuple[str, str, str]] = field(default_factory=list)
    packets: Counter[str] = field(default_factory=Counter)
    unknown: list[tuple[str, str, str]] = field(default_factory=list)
    unwritable: list[tuple[str, str, str]] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    different: list[tuple[str, str, str]] = field(default_factory=list)
    excluded: list[tuple[str, str, str]] = field(default_factory=list)
    failed: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def parse_file(path: Path) -> TestFile:
    """Return the contents of a .t file (format: tests/py/README of nft)."""
    chains: dict[str, str] = {}
    tables: list[tuple[str, str, list[str]]] = []
    found = TestFile()
    for line in path.read_text().splitlines():
        line = line.strip()
        if not line or line[0] in "#-":
            continue
        parts = [part.replace("\\;", ";") for part in _PART.split(line)]
        if line[0] == "%":  # the settings of an object have semicolons of their own
            parts = re.fullmatch(r"(.*);(ok|fail)", line).groups()
        if line[0] == ":":
            chains[parts[0][1:]] = ";".join(parts[1:])
        elif line[0] == "*":
            tables.append((parts[0][1:], parts[1], parts[2].split(",")))
        elif len(parts) < 2 or parts[1].strip() != "ok":
            continue
        elif line[0] in "!?%":
            found.setup += [_definition(family, table, parts[0]) for family, table, _ in tables]
        else:
            found.rules += [(family, table, chain, parts[0]) for family, table, names in tables for chain in names]
    first = []
    for family, table, names in tables:
        first.append(f"add table {family} {table}")
        first += [f"add chain {family} {table} {name} {{ {chains[name]}; }}" for name in names if chains.get(name)]
        first += [f"add chain {family} {table} {name}" for name in names if not chains.get(name)]
    found.setup = first + found.setup
    return found


def _definition(family: str, table: str, words: str) -> str:
    """Return the command for a set (!), its elements (?) or an object (%)."""
    name, _, body = words[1:].partition(" ")
    place = f"{family} {table} {name}"
    if words[0] == "?":
        return f"add element {place} {{ {body} }}"
    if words[0] == "%":
        kind, _, settings = body.removeprefix("type ").partition(" ")
        if kind == "ct":
            part, _, settings = settings.partition(" ")
            kind = f"ct {part}"
        return f"add {kind} {place} {settings}"
    match = re.fullmatch(r"(type(?:of)? .*?)(?: timeout (\S+))?(?: flags (\S+))?", body)
    assert match, words
    timeout = f" timeout {match[2]};" if match[2] else ""
    flags = f" flags {match[3]};" if match[3] else ""
    return f"add {'map' if ' : ' in body else 'set'} {place} {{ {match[1]};{timeout}{flags} }}"


_program = ["nft"]  # the nft that loads rules: its path


def load(lines: list[str]) -> str:
    """Load nft text; return the error, "" without one."""
    done = subprocess.run(
        [*_program, "-f", "-"], input="\n".join(lines) + "\n", capture_output=True, text=True, check=False
    )
    return (done.stderr or f"nft ended with {done.returncode}") if done.returncode else ""


def load_each(lines: list[str]) -> list[str]:
    """Load lines in as few transactions as possible; return the error of each, "" without one."""
    error = load(lines) if lines else ""
    if not error or len(lines) < 2:
        return [error] * len(lines)
    middle = len(lines) // 2
    return load_each(lines[:middle]) + load_each(lines[middle:])


def program(table: nft_dump.RawTable, rule: list[nft_dump.Expression]) -> object:
    """Return a rule's program with the contents of anonymous sets in the place of their names."""
    steps = []
    for name, found in rule:
        found = dict(found)
        if name == "counter":
            found = {}
        if name in _NAMED_SET:
            by_name, by_number = _NAMED_SET[name]
            found.pop(by_number, None)
            set_name = nft_dump.text(found.get(by_name, b""))
            if set_name.startswith("__"):
                found[by_name] = repr(_contents(table.sets[set_name])).encode()
        steps.append((name, sorted(found.items())))
    return steps


def _contents(found: nft_dump.RawSet) -> object:
    header = {kind: value for kind, value in found.header.items() if kind not in _SET_NAMES}
    elements = [
        sorted((kind, value) for kind, value in each.items() if kind not in _ELEMENT_NAMES) for each in found.elements
    ]
    return sorted(header.items()), sorted(elements)


def unknown_parts(value: object) -> list[str]:
    """Return what is not lifted in a rule."""
    if isinstance(value, _UNKNOWN):
        return [getattr(value, "raw", None) or getattr(value, "name", "")]
    if isinstance(value, tuple | frozenset | list):
        return [each for part in value for each in unknown_parts(part)]
    if attrs.has(type(value)):
        return [each for name in attrs.fields_dict(type(value)) for each in unknown_parts(getattr(value, name))]
    return []


def run_file(path: str, packets: int) -> Outcome:
    """Take the rules of one file through the reader and back, in this network namespace."""
    file = parse_file(Path(path))
    found = Outcome(tried=len(file.rules))
    by_chain: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for family, table, chain, rule in file.rules:
        by_chain[family, table, chain].append(rule)
    load_each(file.setup)
    loaded: dict[tuple[str, str, str], list[str]] = {}
    for (family, table, chain), rules in by_chain.items():
        errors = load_each([f"add rule {family} {table} {chain} {rule}" for rule in rules])
        loaded[family, table, chain] = [rule for rule, error in zip(rules, errors, strict=True) if not error]
    found.loaded = sum(map(len, loaded.values()))
    first = nft_dump.read_tables()
    try:
        tables = lifted_tables()
    except Exception as error:  # whatever the reader raises is a fault of the reader
        found.failed.append((path, "the ruleset", repr(error)))
        return found
    lifted = {(*key, chain.name): chain.rules for key, table in tables.items() for chain in table.chains}
    if packets:
        _compare_with_model(path, first, tables, packets, found)
    load(["flush ruleset"])
    load_each(file.setup)
    present = {(key, name) for key, raw in nft_dump.read_tables().items() for name in raw.sets}
    for key, table in tables.items():  # sets that a rule has made, as a meter does
        made = [each for each in table.sets if (key, each.name) not in present]
        load_each([f"add set {' '.join(key)} {each.name} {{ {nft_text.set_body_text(each)} }}" for each in made])
    for place, rules in loaded.items():
        _run_chain(path, place, rules, lifted.get(place, ()), first, found, packets)
    return found


def lifted_tables() -> dict[tuple[str, str], nft.Table]:
    """Return the tables of this network namespace as the product reads them."""
    from nftpolicy.kernel.netlink.nft_ruleset import read_messages
    from nftpolicy.netstate.formats.nft_bytecode.ruleset import decode_ruleset

    return {table.key: table for table in decode_ruleset(read_messages(), decode_xt)}


def _run_chain(path, place, rules, lifted, first, found: Outcome, packets: int) -> None:
    """Write the rules of a chain as text, load them again and compare the programs."""
    family, table, chain = place
    where = f"{Path(path).parent.name}/{Path(path).name} {family} {chain}"
    before = first[family, table].chains[chain].rules
    if not len(rules) == len(lifted) == len(before):
        found.failed.append(
            (where, "the chain", f"{len(rules)} rules loaded, {len(before)} read, {len(lifted)} lifted")
        )
        return
    written: list[tuple[str, int, str]] = []
    for index, (words, rule) in enumerate(zip(rules, lifted, strict=True)):
        unknown = unknown_parts(rule)
        if unknown:
            found.unknown.append((where, words, unknown[0]))
            continue
        found.lifted += 1
        try:
            written.append((words, index, nft_text.rule_text(rule)))
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            found.unwritable.append((where, words, f"{kind}{nft_text.display_text(rule)}"))
    errors = load_each([f"add rule {family} {table} {chain} {text}" for _, _, text in written])
    remaining = [each for each, error in zip(written, errors, strict=True) if not error]
    for (words, _, text), error in zip(written, errors, strict=True):
        if error:
            found.refused.append((where, words, f"{text}  # {error.splitlines()[0][:160]}"))
    second = nft_dump.read_tables()[family, table]
    for (words, index, text), rule in zip(remaining, second.chains[chain].rules, strict=True):
        if program(first[family, table], before[index]) == program(second, rule):
            found.equal += 1
        elif program(second, rule) == relisted_program(place, words):
            found.relisted.append((where, words, text))
        elif (
            packets
            and family in {*FAMILIES, "bridge"}
            and not programs_differ((first[family, table], before[index]), (second, rule), chain, packets)
        ):
            found.equivalent += 1
        else:
            found.different.append((where, words, text))


def relisted_program(place: tuple[str, str, str], words: str) -> object:
    """Return the program of a rule in the form in which nft lists it, None if nft refuses its own listing."""
    family, table, chain = place
    load([f"add rule {family} {table} {chain} {words}"])
    # Of a chain alone, nft 1.0.6 leaves out some lookups in anonymous sets.
    listing = [*_program, "list", "table", family, table]
    lines = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines()
    end = lines.index("\t}", lines.index(f"\tchain {chain} {{"))
    if load([f"add rule {family} {table} {chain} {lines[end - 1].strip()}"]):
        return None
    raw = nft_dump.read_tables()[family, table]
    return program(raw, raw.chains[chain].rules[-1])


def _compare_with_model(path, raw, tables, packets: int, found: Outcome) -> None:
    """Compare the program of each rule with the model of the lifted rule, by itself, on random packets."""
    for key, table in tables.items():
        hooked = [chain for chain in table.chains if chain.hook and table.family in FAMILIES]
        for chain in hooked:
            for index, rule in enumerate(chain.rules):
                alone = single_rule(raw[key], table, chain.name, index)
                reason = disagreement(*alone, chain.name, packets, found.packets, index)
                if reason:
                    found.excluded.append((f"{path} {table.family} {chain.name}", nft_text.display_text(rule), reason))


def kind_of(reason: str) -> str:
    """Return the kind of an unsupported construct: without its bytes and numbers."""
    note = re.search(r"\(([^()]*)\)\W*$", reason)
    name = re.match(r"\W*\[? ?([a-z_ ]+)", reason)
    return (
        f"{name[1].strip() if name else '?'}: {re.sub(r'[0-9a-f]{4,}|[0-9]+', 'N', note[1]) if note else reason[:60]}"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.nft_corpus")
    parser.add_argument("--packets", type=int, default=0, metavar="N")
    parser.add_argument("--nft", default="nft", metavar="PROGRAM", help="the nft that loads the rules")
    parser.add_argument("directory", type=Path)
    parser.add_argument("file", nargs="*")
    options, total = parser.parse_args(arguments), Outcome()
    _program[:] = [options.nft]
    for path in sorted(options.directory.rglob("*.t")):
        name = f"{path.parent.name}/{path.name}"
        if options.file and name not in options.file:
            continue
        with Namespace("corpus") as space:
            try:
                total.add(space.call(lambda path=path: run_file(str(path), options.packets), timeout=900))
            except Exception as error:
                total.failed.append((name, "the file", repr(error)))
    print(f"{total.tried} rules, {total.loaded} loaded, {total.lifted} lifted ({len(total.unknown)} not), "
          f"{len(total.unwritable)} without text, {len(total.refused)} refused as text, {total.equal} equal, {len(total.relisted)} as nft's own listing of them, {total.equivalent} equal on packets, "
          f"{len(total.different)} different, {len(total.failed)} failures")  # fmt: skip
    if total.packets:
        print(f"packets: {dict(total.packets)}, {len(total.excluded)} rules whose outcome the model excludes")
    kinds = Counter(kind_of(reason) for _, _, reason in total.unknown)
    for kind, count in kinds.most_common():
        examples = [rule for _, rule, reason in total.unknown if kind_of(reason) == kind]
        print(f"{count:5} not lifted: {kind}   e.g. {examples[0]}")
    for title in ("unwritable", "refused", "relisted", "different", "excluded", "failed"):
        for where, rule, reason in getattr(total, title):
            print(f"{title}: {where}: {rule}\n    {reason}")
    return bool(total.different or total.excluded or total.failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
