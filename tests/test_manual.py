# SPDX-License-Identifier: BSD-2-Clause
"""Comparison of the manual and the README with the program.

The pages are read as mdoc source, so that all but the last test run without mandoc.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib import import_module
from ipaddress import ip_address
from keyword import iskeyword
from pathlib import Path

import attrs
import pytest
import typer

from nftpolicy import __version__
from nftpolicy.cli import common
from nftpolicy.cli.main import COMMANDS, command_tree
from nftpolicy.compiler import object_names, sysctls
from nftpolicy.compiler.compile import HostFacts, compile_policy
from nftpolicy.integration.openwrt import tree, uci
from nftpolicy.netstate.formats import nft_text
from nftpolicy.netstate.routing import RTPROT_NFTPOLICY
from nftpolicy.policy import objects, validate, vocabulary
from nftpolicy.policy.errors import PolicyError
from nftpolicy.policy.load import load, toml_key
from nftpolicy.proof.verdict import PROPERTIES
from nftpolicy.runtime.apply import state_dir
from nftpolicy.runtime.services import isolation, socket_classifier
from nftpolicy.runtime.services.run import NOT_EXECUTABLE, NOT_FOUND

ROOT = Path(__file__).parents[1]
OVERVIEW, FILE_PAGE = ROOT / "man/nftpolicy.1", ROOT / "man/nftpolicy.toml.5"
COMMAND_PAGES = sorted((ROOT / "man").glob("nftpolicy-*.1"))  # one for each group of commands
OPENWRT_PAGE = ROOT / "man/nftpolicy-openwrt.7"
PROVIDERS_PAGE = ROOT / "man/nftpolicy-providers.7"
PAGES = sorted((ROOT / "man").glob("*.[157]"))
RULESETS = sorted((ROOT / "rulesets").glob("*.toml"))
PROSE = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])

# Heading of the page -> the class whose keys stand below it.
CLASSES = {
    "The file itself": objects.Policy,
    "uplink.NAME": objects.Uplink,
    "uplink.NAME.resolver": objects.Resolver,
    "uplink.NAME.clat": objects.Clat,
    "service.NAME": objects.Service,
    "forward.NAME": objects.Forward,
    "publish.NAME": objects.Publish,
    "lan.NAME": objects.Lan,
}


# --- reading mdoc -------------------------------------------------------------------------


def plain(source: str) -> str:
    """Return mdoc text as one line without escapes and decorating macros."""
    source = re.sub(r"^\.(Dl|Ql|Cm|Va|Pa|Sq|Em|Ar|Xr|Nm|Pq) ", "", source, flags=re.MULTILINE)
    for escape, character in (("\\-", "-"), ("\\&", ""), ("\\(aq", "'"), ("\\(dq", '"')):
        source = source.replace(escape, character)
    return " ".join(source.split())


def bare_words(text: str) -> list[str]:
    """The words of a text, without macros, quotes and other punctuation."""
    text = re.sub(r"(?m)^\.\w\w |\b(?:Fl|Ar|Pa|Ev|Ql|Cm|Ns|Va) ", "", text)
    return [word.lstrip("-") for word in re.findall(r"[\w/=.-]*\w", text.lower())]


def section(page: str, title: str, level: str = "Ss") -> str:
    """Return the source below `.Ss title`, up to the next heading of that level or above."""
    stop = r"\.S[sh] " if level == "Ss" else r"\.Sh "
    found = re.search(rf"^\.{level} {re.escape(title)}\n(.*?)(?=^{stop}|\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"the page has no section {title!r}"
    return found[1]


def items(source: str, macro: str) -> dict[str, str]:
    """Return word -> description of the list items `.It MACRO word`."""
    found = re.findall(rf"^\.It {macro} (\S+).*?\n(.*?)(?=^\.It |^\.El)", source, re.MULTILINE | re.DOTALL)
    assert len(found) == len(dict(found)), "a word stands twice"
    return dict(found)


def options_in(source: str) -> set[str]:
    """Return the options that the macro Fl names: `Fl -to` is --to."""
    macros = [line for line in source.splitlines() if line.startswith(".")]
    return {f"-{word}" for line in macros for word in re.findall(r"\bFl (\S+)", line)}


def option_text(source: str, option: str) -> str:
    """The source that follows `.It Fl option`."""
    found = re.search(rf"^\.It Fl {option[1:]}(?: .*)?\n", source, re.MULTILINE)
    assert found, f"{option} is not described"
    return source[found.end() :]


def page_of(command: str) -> Path:
    """The page with the command in its synopsis."""
    (page,) = (file for file in COMMAND_PAGES if command in synopsis(file.read_text()))
    return page


def command_text(command: str) -> str:
    return command_section(page_of(command).read_text(), command)


def command_section(page: str, command: str) -> str:
    """The source below `.Ss command`; in a page of one command, all that follows the synopsis."""
    if len(synopsis(page)) > 1:
        return section(section(page, "COMMANDS", "Sh"), command)
    return page[page.index(".Sh DESCRIPTION\n") :]


def file_page() -> str:
    return FILE_PAGE.read_text()


# --- reading the program ------------------------------------------------------------------


def parameters(command: str) -> list:
    listed = command_tree().commands[command]
    found = [one for each in getattr(listed, "commands", {"": listed}).values() for one in each.params]
    # A hidden one is how the program calls itself.
    return [one for one in found if one.name != "help" and not getattr(one, "hidden", False)]


def summary(command: str) -> str:
    """The first line of the command's help."""
    module = import_module(f"nftpolicy.cli.{command}{'_' if iskeyword(command) else ''}")
    group = getattr(module, "group", None)
    text = typer.main.get_group(group).help if group else module.command.__doc__
    return text.partition("\n")[0]


def options_of(command: str) -> set[str]:
    named = [one for one in parameters(command) if one.param_type_name == "option"]
    return {word for one in named for word in (*one.opts, *one.secondary_opts)}


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "nftpolicy", *arguments], cwd=ROOT, capture_output=True, text=True, **options
    )


# --- nftpolicy(1) and the pages of the commands --------------------------------------------


def synopsis(page: str) -> dict[str, str]:
    """Command -> its line of the synopsis."""
    source = section(page, "SYNOPSIS", "Sh")
    return dict(re.findall(r"^\.Nm nftpolicy\n\.Cm (\S+)\n(.*?)(?=^\.Nm|\Z)", source, re.MULTILINE | re.DOTALL))


def differences(page: str) -> list[str]:
    """Options of the page that differ from those of the program, for each of its commands."""
    found = [f"command {one}" for one in {*synopsis(page)} - {*COMMANDS}]
    for command in {*synopsis(page)} & {*COMMANDS}:
        source = command_section(page, command)
        documented = {
            f"-{word}"
            for line in re.findall(r"^\.It (Fl .*)$", source, re.MULTILINE)
            for word in re.findall(r"\bFl (\S+)", line)
        }
        found += [f"{command} {option}" for option in documented ^ options_of(command)]
        unknown = options_in(source) | options_in(synopsis(page)[command])
        found += [f"{command} {option}" for option in unknown - options_of(command)]
    return found


def test_each_command_is_in_one_page() -> None:
    documented = [command for file in COMMAND_PAGES for command in synopsis(file.read_text())]
    assert sorted(documented) == sorted(COMMANDS)


@pytest.mark.parametrize("file", COMMAND_PAGES, ids=lambda file: file.name)
def test_sections_and_names_of_a_page_are_its_commands(file: Path) -> None:
    page = file.read_text()
    commands = list(synopsis(page))
    if len(commands) > 1:
        assert re.findall(r"^\.Ss (\S+)$", section(page, "COMMANDS", "Sh"), re.MULTILINE) == commands
    names = re.findall(r"^\.Nm (\S+)", section(page, "NAME", "Sh"), re.MULTILINE)
    assert names == [f"nftpolicy-{command}" for command in commands]
    assert file.name == f"{names[0]}.1"
    assert f".Dt {names[0].upper()} 1\n" in page


def test_overview_lists_each_command_with_page_and_summary() -> None:
    """The summary is the first line of the command's help."""
    listed = {}
    for name, commands in re.findall(
        r"^\.Xr (\S+) 1 :\n(.*?^\.El)", section(OVERVIEW.read_text(), "COMMANDS", "Sh"), re.MULTILINE | re.DOTALL
    ):
        listed |= {command: (name, plain(text)) for command, text in items(commands, "Cm").items()}
    assert listed == {command: (page_of(command).stem, summary(command)) for command in COMMANDS}


def test_overview_names_every_page() -> None:
    named = re.findall(r"^\.Xr (nftpolicy\S*) (\d)", section(OVERVIEW.read_text(), "SEE ALSO", "Sh"), re.MULTILINE)
    assert {f"{name}.{number}" for name, number in named} == {file.name for file in PAGES} - {OVERVIEW.name}


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_cross_references_resolve(file: Path) -> None:
    named = re.findall(r"\bXr (nftpolicy\S*) (\d)", file.read_text())
    assert {f"{name}.{number}" for name, number in named} <= {page.name for page in PAGES}


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_sections_of_other_pages_exist(file: Path) -> None:
    """A reference to a section has the form `.Pq TITLE in Xr PAGE NUMBER`."""
    for title, name, number in re.findall(r"^\.Pq ([A-Z ]+) in Xr (\S+) (\d)", file.read_text(), re.MULTILINE):
        assert f".Sh {title}\n" in (ROOT / f"man/{name}.{number}").read_text()


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_no_row_begins_with_a_quote(file: Path) -> None:
    """groff ends a quote (Ql) at the end of the row, not of the cell."""
    assert re.findall(r"^\.It .*Ql .* Ta .*", file.read_text(), re.MULTILINE) == []


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_no_cell_begins_with_a_word_that_is_a_macro(file: Path) -> None:
    """mdoc takes words such as No and An for macros, and leaves them out."""
    found = [line for line in file.read_text().splitlines() if re.search(r"^\..* Ta (?:No|An|At|In|So|Do) [a-z]", line)]
    assert found == []


def test_every_page_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    pages = {source: target for source, target in installed.items() if source.startswith("man/")}
    assert pages == {f"man/{file.name}": f"share/man/man{file.suffix[1:]}/{file.name}" for file in PAGES}


@pytest.mark.parametrize("file", COMMAND_PAGES, ids=lambda file: file.name)
def test_page_has_an_example_before_its_options(file: Path) -> None:
    page = file.read_text()
    assert ".Sh EXAMPLES\n" in page.partition(".It Fl ")[0]


@pytest.mark.parametrize("file", COMMAND_PAGES, ids=lambda file: file.name)
def test_every_command_and_option_is_in_the_page_and_no_other(file: Path) -> None:
    assert differences(file.read_text()) == []


def test_a_deleted_or_an_invented_option_is_noticed() -> None:
    checked = 0
    for file in COMMAND_PAGES:
        page = file.read_text()
        start = page.index(".Sh DESCRIPTION\n")
        for option in re.finditer(r"^\.It Fl --?\w{2}.*\n", page[start:], re.MULTILINE):
            at, end = start + option.start(), start + option.end()
            assert differences(f"{page[:at]}.It elsewhere\n{page[end:]}"), option[0]
            checked += 1
    assert checked >= 60
    page = page_of("apply").read_text()
    assert "apply --force" in differences(page.replace(".It Fl -dry-run", ".It Fl -force\n.It Fl -dry-run", 1))


@pytest.mark.parametrize("command", COMMANDS)
def test_synopsis_shows_each_option_once_and_the_required(command: str) -> None:
    line = synopsis(page_of(command).read_text())[command]
    shown = options_in(line)
    for one in parameters(command):
        if one.param_type_name == "option":
            assert len(shown & {*one.opts, *one.secondary_opts}) == 1, one.name
        else:
            required = f".Ar {one.name.upper()}" in line.splitlines()
            optional = f".Op Ar {one.name.upper()}" in line.splitlines()
            assert (required, optional) == (one.required, not one.required)


@pytest.mark.parametrize("command", COMMANDS)
def test_choices_and_defaults_of_options(command: str) -> None:
    source = command_text(command)
    for one in parameters(command):
        if one.param_type_name != "option" or one.default in (None, False, []):
            continue
        described = option_text(source, one.opts[0])
        default = getattr(one.default, "value", one.default)
        default = one.opts[0].lstrip("-") if default is True else default
        assert f"Default: {default}." in plain(described), one.name
        for choice in getattr(one.type, "choices", ()):
            assert f".It Cm {getattr(choice, 'value', choice)}\n" in described


@pytest.mark.parametrize("command", COMMANDS)
def test_description_of_an_option_begins_with_its_help(command: str) -> None:
    source = command_text(command)
    for one in parameters(command):
        if one.param_type_name == "option":
            described = option_text(source, one.opts[0])
            # The argument, such as NAME=DEVICE, stands beside the option.
            said = re.sub(r"^[A-Z.]+=\S+[:,] (?!if)", "", one.help)
            assert bare_words(described)[: len(bare_words(said))] == bare_words(said), one.name


@pytest.mark.parametrize("command", COMMANDS)
def test_description_of_a_command_begins_with_its_summary(command: str) -> None:
    source = command_text(command).removeprefix(".Sh DESCRIPTION\n")
    said = bare_words(summary(command))
    assert bare_words(source)[: len(said)] == said


def test_the_options_of_the_program_itself() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    options = {*re.findall(r"(?<!\w)--?[a-z][a-z-]*", shown.stdout.partition("Options:")[2].partition("Commands:")[0])}
    source = section(OVERVIEW.read_text(), "DESCRIPTION", "Sh")
    assert options_in(source) == options == {"--version", "-h", "--help"}
    assert run("--version").stdout == f"nftpolicy {__version__}\n"


def test_exit_statuses() -> None:
    source = section(OVERVIEW.read_text(), "EXIT STATUS", "Sh")
    documented = [int(one) for one in re.findall(r"^\.It (\d+)$", source, re.MULTILINE)]
    assert documented == [
        0,
        common.EXIT_REFUTED,
        common.EXIT_BAD_INPUT,
        common.EXIT_UNKNOWN,
        common.EXIT_UNAVAILABLE,
        common.EXIT_FAILED,
        common.EXIT_DEFECT,
        NOT_EXECUTABLE,
        NOT_FOUND,
        128 + signal.SIGINT,
        common.EXIT_OUTPUT_CLOSED,
        128 + signal.SIGTERM,
    ]


def test_exit_status_of_check_is_as_documented(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("name = 1\n")
    assert run("check", "rulesets/gluon-fastd.toml").returncode == 0
    assert run("check", str(tmp_path / "bad.toml")).returncode == 2
    assert run("check", str(tmp_path / "absent.toml")).returncode == 2
    assert run("check", "--nonsense", "rulesets/gluon-fastd.toml").returncode == 2


def test_status_without_root_has_status_4(tmp_path: Path) -> None:
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    if nobody and subprocess.run(["test", "-r", __file__], **nobody).returncode:
        pytest.skip("the checkout can't be read by another user than root")
    assert run("status", "rulesets/gluon-fastd.toml", **nobody).returncode == 4


def test_places() -> None:
    page = OVERVIEW.read_text()
    assert f".It Pa {state_dir.DEFAULT_ROOT}/netns-NUMBER/" in page
    assert f".It Pa {state_dir.DEFAULT_ROOT}/UPLINK.dns" in page_of("resolver").read_text()
    assert f"{state_dir.DEFAULT_ROOT}/NAME.dns" in file_page()
    code = "".join(file.read_text() for file in (ROOT / "nftpolicy").rglob("*.py"))
    read = set(re.findall(r"environ\.get\([\"'](\w+)", code)) | set(re.findall(r'envvar="(\w+)"', code))
    assert {*items(section(page, "ENVIRONMENT", "Sh"), "Ev")} == read


# --- nftpolicy.toml(5) --------------------------------------------------------------------

MINIMAL = """
name = "minimal"
inside = ["guests"]
[uplink.wan]
devices = ["br-wan", "clat"]
mark = "0x1/0x1"
table = 1
[uplink.wan.resolver]
[uplink.wan.clat]
device = "clat"
[service.vpn]
uplink = "wan"
group = 800
[forward.guests]
uplink = "wan"
from = ["guests"]
[publish.web]
uplink = "wan"
port = "tcp/8080"
to = "guests"
[lan.nas]
uplink = "wan"
to = ["192.168.1.0/24"]
"""
# Heading of the page -> the header of MINIMAL below which a key of that class goes.
PLACES = {
    "uplink.NAME": "[uplink.wan]\n",
    "uplink.NAME.resolver": "[uplink.wan.resolver]\n",
    "uplink.NAME.clat": "[uplink.wan.clat]\n",
    "service.NAME": "[service.vpn]\n",
    "forward.NAME": "[forward.guests]\n",
    "publish.NAME": "[publish.web]\n",
    "lan.NAME": "[lan.nas]\n",
}


@pytest.mark.parametrize("title", CLASSES)
def test_page_has_exactly_the_keys(title: str) -> None:
    documented = items(section(file_page(), title), "Va")
    assert list(documented) == [toml_key(field) for field in attrs.fields(CLASSES[title])]


def test_page_has_every_class_of_keys() -> None:
    title = re.findall(r"^\.Ss (.*)$", section(file_page(), "KEYS", "Sh"), re.MULTILINE)
    assert title == list(CLASSES)


@pytest.mark.parametrize(
    ("title", "field"),
    [
        pytest.param(title, field, id=f"{title}.{field.name}")
        for title, kind in CLASSES.items()
        for field in attrs.fields(kind)
    ],
)
def test_page_has_the_default_of_each_key(title: str, field: attrs.Attribute) -> None:
    described = plain(items(section(file_page(), title), "Va")[toml_key(field)])
    said = re.search(r" (Required|Optional|Default: (.*?))\.(?: [A-Z\d]|$)", described)
    assert said, f"{field.name}: the page says neither Required nor Optional nor Default"
    if field.default is attrs.NOTHING:
        assert said[1] == "Required"
    elif field.default is None or isinstance(field.default, attrs.Factory):  # a table that may be left out
        assert said[1] == "Optional"
    else:
        # The default written out means the same as the key left out.
        header = PLACES[title]
        written = MINIMAL.replace(header, f"{header}{toml_key(field)} = {said[2]}\n")
        assert tomllib.loads(written) != tomllib.loads(MINIMAL)
        assert load(written.encode())[0] == load(MINIMAL.encode())[0]


def test_missing_required_key_is_refused() -> None:
    for key in ("name", "inside", "devices", "mark", "table", "uplink"):
        without = re.sub(rf"^{key} = .*\n", "", MINIMAL, count=1, flags=re.MULTILINE)
        with pytest.raises(PolicyError, match=f"'{key}' is missing"):
            load(without.encode())


@pytest.mark.parametrize(
    ("title", "table"),
    [
        ("Exemptions", vocabulary.EXEMPTIONS),
        ("Learn", vocabulary.LEARN_SOURCES),
        ("Answers", vocabulary.NAMED_ANSWERS),
        ("Sources", vocabulary.DNS_SOURCES),
        ("Marks", vocabulary.MARKS_VALUES),
        ("Tunnels", vocabulary.TUNNEL_PROTOCOLS),
    ],
)
def test_page_has_every_keyword_with_its_reason(title: str, table: dict[str, str]) -> None:
    documented = items(section(file_page(), title), "Cm")
    assert list(documented) == list(table)
    for word, reason in table.items():
        assert plain(documented[word]).startswith(reason), word


TUNNELS = """
[service.tunnels]
uplink = "UPLINK"
kernel = true
ports  = ["gre"]
to     = ["198.51.100.9"]
"""
REACHED = 'answer = ["ssh", "udp/5555"]\naddresses = ["198.51.100.7"]\n'


def full_policy() -> objects.Policy:
    """Return a policy with every part, its uplink named UPLINK as in the page."""
    exempt = ", ".join(f'"{word}"' for word in vocabulary.EXEMPTIONS)
    written = (
        MINIMAL.replace("wan]", "UPLINK]")
        .replace("wan.", "UPLINK.")
        .replace('"wan"', '"UPLINK"')
        .replace("table = 1\n", f"table = 1\nexempt = [{exempt}]\n{REACHED}")
        .replace('from = ["guests"]', 'from = ["guests"]\nmasquerade = true')
        .replace("[uplink.UPLINK.resolver]", '[uplink.UPLINK.resolver]\nlisten = ["192.0.2.1:54"]')
    )
    return load((written + TUNNELS).encode())[0]


def chains() -> dict:
    state = compile_policy(full_policy(), HostFacts())
    return {(table.family, chain.name): chain for table in state.tables for chain in table.chains}


@pytest.mark.parametrize("word", vocabulary.EXEMPTIONS)
def test_page_has_the_match_of_each_exemption(word: str) -> None:
    said = re.findall(r"^\.Dl (.*)$", items(section(file_page(), "Exemptions"), "Cm")[word], re.MULTILINE)
    both = (chains()["netdev", f"UPLINK.{name}"].rules for name in ("link", "packets"))
    rules = [nft_text.rule_text(one) for part in both for one in part]
    ends = re.compile(rf' (counter name "UPLINK\.exempt\.{word}" accept|jump UPLINK\.kernel\.{word})$')
    assert [ends.sub("", rule) for rule in rules if ends.search(rule)] == said


@pytest.mark.parametrize("family", object_names.FAMILIES)
def test_page_has_every_chain(family: str) -> None:
    documented = items(section(file_page(), f"table {family} {object_names.TABLE}"), "Cm")
    compiled = {name: chain for (of, name), chain in chains().items() if of == family}
    device = compiled.pop("device-br-wan", None)
    compiled.pop("device-clat", None)
    if device:
        compiled["device-DEVICE"] = device
    assert set(documented) == set(compiled)
    for name, chain in compiled.items():
        hook = chain.hook and f"{chain.hook.type}, {chain.hook.hook}, priority {chain.hook.priority}"
        assert (hook is None) != plain(documented[name]).startswith(str(hook)), name
        drops = bool(chain.hook and chain.hook.policy == "drop")
        assert drops == ("Its policy is drop." in plain(documented[name])), name


def test_page_has_every_counter() -> None:
    state = compile_policy(full_policy(), HostFacts())
    compiled = {counter.name for table in state.tables for counter in table.counters}
    entries = re.compile(r"(answer|forward|publish|lan)\.(ssh|udp-5555|guests|web|nas)")
    compiled = {re.sub(r"exempt\..*", "exempt.WORD", entries.sub(r"\1.NAME", name)) for name in compiled}
    assert {*items(section(page_of("status").read_text(), "COUNTERS", "Sh"), "Cm")} == compiled


# --- tables of the pages -------------------------------------------------------------------


def rows(source: str, macro: str) -> dict[str, list[str]]:
    """Word -> cells, of the rows `.It MACRO word Ta cell ...` of a table."""
    found = re.findall(rf"^\.It {macro} (\S+) Ta (.*)$", source, re.MULTILINE)
    assert len(found) == len(dict(found)), "a word stands twice"
    return {word: re.split(r" Ta ", cells) for word, cells in found}


def test_every_socket_verdict_is_in_the_page() -> None:
    documented = rows(section(page_of("status").read_text(), "SOCKET VERDICTS", "Sh"), "Cm")
    assert {*documented} == {*socket_classifier.MEANINGS, socket_classifier.RIGHT}
    for verdict, meaning in socket_classifier.MEANINGS.items():
        assert documented[verdict][0].startswith("UPLINK.") == ("{counter}" in meaning), verdict


def test_every_property_is_in_the_page() -> None:
    documented = rows(section(page_of("verify").read_text(), "PROPERTIES", "Sh"), "Cm")
    assert {name: cells[0] for name, cells in documented.items()} == PROPERTIES


def test_every_marking_method_is_in_the_page() -> None:
    documented = rows(section(page_of("run").read_text(), "MARKING METHODS", "Sh"), "Cm")
    assert {*documented} == {*vocabulary.MARKS_VALUES}


def test_every_variable_that_run_passes_is_in_the_page() -> None:
    source = section(page_of("run").read_text(), "UNTRUSTED PROGRAMS", "Sh")
    documented = re.findall(r"^\.It Va (?:group No or Va user|group) Ta (.*)$", source, re.MULTILINE)
    assert documented == [", ".join(isolation.PASSED_VARIABLES), ", ".join(isolation.ACCOUNT_VARIABLES)]


def test_every_event_of_watch_is_in_the_page() -> None:
    lines = re.findall(r"^\.It Cm (.*)$", section(page_of("watch").read_text(), "LOG", "Sh"), re.MULTILINE)
    documented = [event for line in lines for event in line.split(" , ")]
    code = "".join(file.read_text() for file in (ROOT / "nftpolicy/runtime/watch").glob("*.py"))
    logged = re.findall(r"(?:log_event|_log)\(\s*\"([a-z-]+)\"", code)
    assert len(logged) > len(documented)  # some are logged in several places
    assert sorted(documented) == sorted(set(logged))


def test_page_has_the_numbers_of_ip_rules_and_routes() -> None:
    step = object_names.MARK_RULE_STEP
    of_marks = [
        object_names.MARK_RULE_PRIORITY + offset
        for offset in (object_names.LINK_LOCAL_OFFSET, 0, object_names.UNREACHABLE_OFFSET)
    ]
    others = [
        object_names.USER_LINK_LOCAL_PRIORITY,
        object_names.USER_RULE_PRIORITY,
        object_names.USER_UNREACHABLE_PRIORITY,
        object_names.TUNNEL_RULE_PRIORITY,
        object_names.IPSEC_RULE_PRIORITY,
        object_names.TUNNEL_UNREACHABLE_PRIORITY,
        object_names.IPSEC_UNREACHABLE_PRIORITY,
        object_names.DEVICE_RULE_PRIORITY,
        object_names.LAN_RULE_PRIORITY,
        object_names.EXCLUSIVE_NETWORK_PRIORITY,
        object_names.EXCLUSIVE_RULE_PRIORITY,
        object_names.QUERY_RULE_PRIORITY,
        object_names.NETWORK_RULE_PRIORITY,
        object_names.REPLY_RULE_PRIORITY,
        object_names.FINAL_UNREACHABLE_PRIORITY,
    ]
    source = section(file_page(), "ip rules")
    found = re.findall(r"^\.It (\d+(?: \+ \d+)?)", source, re.MULTILINE)
    assert found == [*(f"{priority} + {step}" for priority in of_marks), *map(str, others)]
    assert f"before {of_marks[0]} that" in plain(source)
    routes = plain(section(file_page(), "Routes"))
    assert f"metric {object_names.UNREACHABLE_METRIC}" in routes
    assert f"protocol {RTPROT_NFTPOLICY}" in routes
    policy = full_policy()
    by_gateway = attrs.evolve(policy.uplink["UPLINK"], gateways=(ip_address("192.0.2.1"),))
    state = compile_policy(attrs.evolve(policy, uplink={"UPLINK": by_gateway}))
    (metric,) = {route.metric for route in state.routes if route.gateway}
    assert f"metric {metric}, onlink" in routes


def test_page_has_the_limits_of_values() -> None:
    page = plain(section(file_page(), "KEYS", "Sh"))
    assert f"1 to {validate.MAX_UPLINKS} uplinks" in page
    assert f"from 1 to {2**32 - 1}" in page
    assert {253, 254, 255} == validate.KERNEL_TABLES - {0}
    assert "253, 254 and 255" in page


def test_page_has_every_sysctl() -> None:
    documented = re.findall(r"^(net/\S+) = (\S+)$", section(file_page(), "sysctls"), re.MULTILINE)
    compiled = [*sysctls.HOST_SYSCTLS.items()]
    of_devices = [*sysctls.DEVICE_SYSCTLS.items(), *sysctls.ROUTER_ADVERTISEMENT_SYSCTLS.items()]
    compiled += [(path.format(device="DEVICE"), value) for path, value in of_devices]
    compiled += [(sysctls.FORWARD_SYSCTL.format(device="DEVICE"), "2")]
    compiled += [(path.format(device="DEVICE"), value) for path, value in sysctls.CLAT_SYSCTLS.items()]
    assert documented == compiled


# --- nftpolicy-openwrt(7) -----------------------------------------------------------------


def test_openwrt_page_has_every_file() -> None:
    documented = items(section(OPENWRT_PAGE.read_text(), "FILES", "Sh"), "Pa")
    assert {*documented} == {f"/{path}" for path in tree.build_tree(full_policy())}


def test_openwrt_page_has_every_command() -> None:
    page = OPENWRT_PAGE.read_text()
    script = tree.build_tree(full_policy())[tree.RUNNER_PATH].text
    usage = re.search(r'^usage="usage: nftpolicy (.*)"$', script, re.MULTILINE)
    assert usage
    assert [*items(section(page, "COMMANDS OF THE ROUTER", "Sh"), "Cm")] == usage[1].split(" | ")
    assert str(uci.LAST_METRIC) in section(page, "LIMITS", "Sh")


# --- nftpolicy-providers(7) ---------------------------------------------------------------


def policies_of_providers() -> dict[str, list[objects.Policy]]:
    """Return the policies that each section names, by heading."""
    titles = re.findall(r"^\.Ss (.*)$", PROVIDERS_PAGE.read_text(), re.MULTILINE)
    named = {
        title: re.findall(r"^\.Pa (\S+\.toml)", section(PROVIDERS_PAGE.read_text(), title), re.M) for title in titles
    }
    return {title: [load((ROOT / "rulesets" / one).read_bytes())[0] for one in found] for title, found in named.items()}


def test_page_and_readme_have_every_shipped_policy() -> None:
    files = [file.name for file in RULESETS]
    named = {one.name + ".toml" for found in policies_of_providers().values() for one in found}
    assert sorted(named) == files
    rows = re.findall(r"^\| `([\w-]+\.toml)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == files


@pytest.mark.parametrize("file", RULESETS, ids=lambda file: file.stem)
def test_shipped_policy_has_the_name_of_its_file(file: Path) -> None:
    assert load(file.read_bytes())[0].name == file.stem


@pytest.mark.parametrize("title", policies_of_providers())
def test_providers_page_has_the_marks_of_the_policies(title: str) -> None:
    policies = policies_of_providers()[title]
    assert policies
    said = section(PROVIDERS_PAGE.read_text(), title).replace("\\-", "-")
    marks = {up.mark.value for policy in policies for up in policy.uplink.values()}
    told = {int(number) for number in re.findall(r"\b(?:[Mm]ark|FwMark =) (\d+)\b", said)}
    assert told <= marks
    run = set(re.findall(r"nftpolicy run (\w+) --", said))
    assert run <= {
        name for policy in policies for name, one in policy.service.items() if one.marks in ("cgroup", "preload")
    }
    assert told or run, "the section says neither a mark nor how to run the program"
    services = [service for policy in policies for service in policy.service.values()]
    ports = {port.low for service in services for port in service.sport}
    assert {int(port) for port in re.findall(r"ListenPort = (\d+)", said)} == (
        ports if title in ("WireGuard", "wg-quick") else set()
    )
    groups = {service.group.number for service in services if service.group}
    assert {int(number) for number in re.findall(r"(?:--regid|group) (\d+)", said)} <= groups


def test_comments_of_shipped_policies_have_their_mark() -> None:
    for file in RULESETS:
        content = file.read_text()
        marks = {up.mark.value for up in load(file.read_bytes())[0].uplink.values()}
        told = {int(number) for number in re.findall(r"(?:[Mm]ark|_mark|FwMark is) (\d+)\b", content)}
        assert told <= marks, file.name


# --- examples, everywhere -----------------------------------------------------------------


def toml_in(file: Path) -> list[str]:
    if file.suffix == ".md":
        return re.findall(r"^```toml\n(.*?)^```", file.read_text(), re.MULTILINE | re.DOTALL)
    return re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", section(file.read_text(), "EXAMPLE POLICY", "Sh"), re.M | re.S)


@pytest.mark.parametrize("file", [FILE_PAGE, ROOT / "README.md"], ids=lambda file: file.name)
def test_example_policies_compile(file: Path) -> None:
    policies = toml_in(file)
    assert policies
    for written in policies:
        policy, _ = load(written.encode(), str(file))
        assert compile_policy(policy).tables


def invocations(file: Path) -> list[str]:
    """Return each `nftpolicy ...` in code: the rest of the line, or of the quoted piece."""
    content = file.read_text()
    if file.suffix != ".md":
        content = content.replace("\\-", "-")
        return re.findall(r"^[#$] nftpolicy (.*)$|^\.Ql nftpolicy (.*)$", content, re.MULTILINE)
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", content, re.MULTILINE | re.DOTALL)
    code = "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", content)])
    return re.findall(r"^(?:[#$] )?(?:sudo )?(?:\.venv/bin/)?nftpolicy (\S.*)$", code, re.MULTILINE)


@pytest.mark.parametrize("file", [*PAGES, *PROSE], ids=lambda file: file.name)
def test_commands_in_examples_exist(file: Path) -> None:
    for found in invocations(file):
        line = found if isinstance(found, str) else "".join(found)
        ours = re.split(r"[|>&;#]", line)[0].partition(" -- ")[0]  # what follows is another program's
        command, *rest = ours.split()
        if command.startswith("-"):
            assert command in ("--version", "-h", "--help"), line
            continue
        assert command in COMMANDS, line
        options = {
            word.strip("[]").partition("=")[0] for word in rest if word.strip("[]").startswith("-") and word != "-"
        }
        assert options <= options_of(command) | {"-h", "--help"}, line


def test_readme_has_every_command() -> None:
    rows = re.findall(r"^\| `nftpolicy (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows == list(COMMANDS)


@pytest.mark.parametrize("file", PROSE, ids=lambda file: file.name)
def test_named_files_exist(file: Path) -> None:
    content = file.read_text()
    named = re.findall(r"(?<![\w/.])((?:script|rulesets|docs|man|tests|nftpolicy)/[\w./-]*\w)", content)
    missing = [one for one in named if not (ROOT / one).exists()]
    assert missing == []


def test_newest_release_of_the_changelog_is_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", __version__]


# --- the pages as mdoc --------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed (apt-get install mandoc)")
@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_mandoc_finds_no_fault(file: Path) -> None:
    found = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", file], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
