# SPDX-License-Identifier: BSD-2-Clause
"""Agreement of the manual, the README and the program.

The pages are read as mdoc source, so that all but the last test run without mandoc.
"""

import os
import re
import shutil
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
from nftpolicy.cli.main import COMMANDS
from nftpolicy.compiler import object_names, sysctls
from nftpolicy.compiler.compile import HostFacts, compile_policy
from nftpolicy.integration.openwrt import tree, uci
from nftpolicy.netstate.formats import nft_text
from nftpolicy.netstate.routing import RTPROT_NFTPOLICY
from nftpolicy.policy import objects, validate, vocabulary
from nftpolicy.policy.errors import PolicyError
from nftpolicy.policy.load import load
from nftpolicy.runtime.apply import state_dir
from nftpolicy.runtime.services.run import NOT_EXECUTABLE, NOT_FOUND

ROOT = Path(__file__).parents[1]
COMMAND_PAGE, FILE_PAGE = ROOT / "man/nftpolicy.1", ROOT / "man/nftpolicy.toml.5"
OPENWRT_PAGE = ROOT / "man/nftpolicy-openwrt.7"
PROVIDERS_PAGE = ROOT / "man/nftpolicy-providers.7"
RULESETS = sorted((ROOT / "rulesets").glob("*.toml"))
PROSE = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])

# Heading of the page -> the class whose keys stand below it.
CLASSES = {
    "The file itself": objects.Policy,
    "uplink.NAME": objects.Uplink,
    "uplink.NAME.resolver": objects.Resolver,
    "service.NAME": objects.Service,
}


# --- reading mdoc -------------------------------------------------------------------------


def plain(source: str) -> str:
    """Return mdoc text as one line without escapes and decorating macros."""
    source = re.sub(r"^\.(Dl|Ql|Cm|Va|Pa|Sq|Em|Ar|Xr|Nm|Pq) ", "", source, flags=re.MULTILINE)
    for escape, character in (("\\-", "-"), ("\\&", ""), ("\\(aq", "'"), ("\\(dq", '"')):
        source = source.replace(escape, character)
    return " ".join(source.split())


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


def command_page() -> str:
    return COMMAND_PAGE.read_text()


def file_page() -> str:
    return FILE_PAGE.read_text()


# --- reading the program ------------------------------------------------------------------


def parameters(command: str) -> list:
    module = import_module(f"nftpolicy.cli.{command}{'_' if iskeyword(command) else ''}")
    if hasattr(module, "group"):
        found = [one for each in typer.main.get_group(module.group).commands.values() for one in each.params]
    else:
        app = typer.Typer(add_completion=False)
        app.command(command)(module.command)
        found = typer.main.get_command(app).params
    # A hidden one is how the program calls itself.
    return [one for one in found if one.name != "help" and not getattr(one, "hidden", False)]


def options_of(command: str) -> set[str]:
    named = [one for one in parameters(command) if one.param_type_name == "option"]
    return {word for one in named for word in (*one.opts, *one.secondary_opts)}


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "nftpolicy", *arguments], cwd=ROOT, capture_output=True, text=True, **options
    )


# --- nftpolicy(1) -------------------------------------------------------------------------


def commands_of_page(page: str) -> list[str]:
    return re.findall(r"^\.Ss (\S+)$", section(page, "COMMANDS", "Sh"), re.MULTILINE)


def synopsis(page: str) -> dict[str, str]:
    source = section(page, "SYNOPSIS", "Sh")
    return dict(re.findall(r"^\.Nm\n\.Cm (\S+)\n(.*?)(?=^\.Nm|\Z)", source, re.MULTILINE | re.DOTALL))


def differences(page: str) -> list[str]:
    """Return the commands and options in which the page and the program differ."""
    found = [f"command {one}" for one in {*commands_of_page(page)} ^ {*COMMANDS}]
    found += [f"command {one} in the synopsis" for one in {*synopsis(page)} ^ {*COMMANDS}]
    for command in {*commands_of_page(page)} & {*COMMANDS}:
        documented = {
            f"-{word}"
            for line in re.findall(r"^\.It (Fl .*)$", section(page, command), re.MULTILINE)
            for word in re.findall(r"\bFl (\S+)", line)
        }
        found += [f"{command} {option}" for option in documented ^ options_of(command)]
        unknown = options_in(section(page, command)) | options_in(synopsis(page).get(command, ""))
        found += [f"{command} {option}" for option in unknown - options_of(command)]
    return found


def test_page_has_exactly_the_commands_and_options() -> None:
    assert differences(command_page()) == []


def test_page_check_detects_deleted_and_invented_options() -> None:
    page = command_page()
    lines = [line for line in page.splitlines() if re.match(r"\.It Fl --?\w{2}", line) and "version" not in line]
    lines = [line for line in lines if "Fl h" not in line]
    assert len(lines) >= 8
    for line in lines:
        assert differences(page.replace(f"{line}\n", ".It elsewhere\n", 1)), line
    assert "apply --force" in differences(page.replace(".It Fl -dry-run", ".It Fl -force\n.It Fl -dry-run", 1))


@pytest.mark.parametrize("command", COMMANDS)
def test_synopsis_has_each_option_once(command: str) -> None:
    line = synopsis(command_page())[command]
    shown = options_in(line)
    for one in parameters(command):
        if one.param_type_name == "option":
            assert len(shown & {*one.opts, *one.secondary_opts}) == 1, one.name
        else:
            required = f".Ar {one.name.upper()}" in line.splitlines()
            optional = f".Op Ar {one.name.upper()}" in line.splitlines()
            assert (required, optional) == (one.required, not one.required)


@pytest.mark.parametrize("command", COMMANDS)
def test_page_has_choices_and_defaults_of_options(command: str) -> None:
    source = section(command_page(), command)
    for one in parameters(command):
        if one.param_type_name != "option" or one.default in (None, False, []):
            continue
        described = source[source.index(f"Fl {one.opts[0][1:]}") :]
        default = getattr(one.default, "value", one.default)
        default = one.opts[0].lstrip("-") if default is True else default
        assert f"Default: {default}." in plain(described), one.name
        for choice in getattr(one.type, "choices", ()):
            assert f".It Cm {getattr(choice, 'value', choice)}\n" in described


def test_page_has_the_global_options() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    options = {*re.findall(r"(?<!\w)--?[a-z][a-z-]*", shown.stdout.partition("Options:")[2].partition("Commands:")[0])}
    source = section(command_page(), "DESCRIPTION", "Sh")
    assert options_in(source) == options == {"--version", "-h", "--help"}
    assert run("--version").stdout == f"nftpolicy {__version__}\n"


def test_page_has_every_exit_status() -> None:
    source = section(command_page(), "EXIT STATUS", "Sh")
    documented = [int(one) for one in re.findall(r"^\.It (\d+)$", source, re.MULTILINE)]
    assert documented == [
        0,
        common.EXIT_REFUSED,
        common.EXIT_BAD_INPUT,
        common.EXIT_UNKNOWN,
        common.EXIT_UNAVAILABLE,
        NOT_EXECUTABLE,
        NOT_FOUND,
        130,
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


def test_page_has_directories_and_environment() -> None:
    page = command_page()
    assert f".It Pa {state_dir.DEFAULT_ROOT}/netns-NUMBER/" in page
    assert f".It Pa {state_dir.DEFAULT_ROOT}/UPLINK.dns" in page
    assert f"{state_dir.DEFAULT_ROOT}/NAME.dns" in file_page()
    code = "".join(file.read_text() for file in (ROOT / "nftpolicy").rglob("*.py"))
    read = set(re.findall(r"environ\.get\([\"'](\w+)", code)) | set(re.findall(r'envvar="(\w+)"', code))
    assert {*items(section(page, "ENVIRONMENT", "Sh"), "Ev")} == read


# --- nftpolicy.toml(5) --------------------------------------------------------------------

MINIMAL = """
name = "minimal"
inside = []
[uplink.wan]
devices = ["br-wan"]
mark = "0x1/0x1"
table = 1
[uplink.wan.resolver]
[service.vpn]
uplink = "wan"
group = 800
"""
# Heading of the page -> the header of MINIMAL below which a key of that class goes.
PLACES = {
    "uplink.NAME": "[uplink.wan]\n",
    "uplink.NAME.resolver": "[uplink.wan.resolver]\n",
    "service.NAME": "[service.vpn]\n",
}


@pytest.mark.parametrize("title", CLASSES)
def test_page_has_exactly_the_keys(title: str) -> None:
    documented = items(section(file_page(), title), "Va")
    assert list(documented) == [field.name for field in attrs.fields(CLASSES[title])]


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
    described = plain(items(section(file_page(), title), "Va")[field.name])
    said = re.search(r" (Required|Optional|Default: (.*?))\.(?: [A-Z\d]|$)", described)
    assert said, f"{field.name}: the page says neither Required nor Optional nor Default"
    if field.default is attrs.NOTHING:
        assert said[1] == "Required"
    elif field.default is None or isinstance(field.default, attrs.Factory):  # a table that may be left out
        assert said[1] == "Optional"
    else:
        # The default written out means the same as the key left out.
        header = PLACES[title]
        written = MINIMAL.replace(header, f"{header}{field.name} = {said[2]}\n")
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
    ],
)
def test_page_has_every_keyword_with_its_reason(title: str, table: dict[str, str]) -> None:
    documented = items(section(file_page(), title), "Cm")
    assert list(documented) == list(table)
    for word, reason in table.items():
        assert plain(documented[word]).startswith(reason), word


def full_policy() -> objects.Policy:
    """Return a policy with every part, its uplink named UPLINK as in the page."""
    exempt = ", ".join(f'"{word}"' for word in vocabulary.EXEMPTIONS)
    written = (
        MINIMAL.replace("wan]", "UPLINK]")
        .replace("wan.", "UPLINK.")
        .replace('"wan"', '"UPLINK"')
        .replace("table = 1\n", f'table = 1\nexempt = [{exempt}]\nanswer = ["ssh"]\n')
        .replace("[uplink.UPLINK.resolver]", '[uplink.UPLINK.resolver]\nlisten = ["192.0.2.1:54"]')
    )
    return load(written.encode())[0]


def chains() -> dict:
    state = compile_policy(full_policy(), HostFacts())
    return {(table.family, chain.name): chain for table in state.tables for chain in table.chains}


@pytest.mark.parametrize("word", vocabulary.EXEMPTIONS)
def test_page_has_the_match_of_each_exemption(word: str) -> None:
    said = re.findall(r"^\.Dl (.*)$", items(section(file_page(), "Exemptions"), "Cm")[word], re.MULTILINE)
    rules = [nft_text.rule_text(one) for one in chains()["netdev", "UPLINK.link"].rules]
    passed = [rule.partition(" counter")[0] for rule in rules if f'"UPLINK.exempt.{word}"' in rule]
    assert [one.removeprefix("meta protocol ip ") for one in passed] == said


@pytest.mark.parametrize("family", object_names.FAMILIES)
def test_page_has_every_chain(family: str) -> None:
    documented = items(section(file_page(), f"table {family} {object_names.TABLE}"), "Cm")
    compiled = {name: chain for (of, name), chain in chains().items() if of == family}
    device = compiled.pop("device-br-wan", None)
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
    compiled = {re.sub(r"exempt\..*", "exempt.WORD", one).replace("answer.ssh", "answer.NAME") for one in compiled}
    assert {*items(section(command_page(), "status"), "Cm")} == compiled


def test_page_has_the_numbers_of_ip_rules_and_routes() -> None:
    step = object_names.MARK_RULE_STEP
    first = [
        object_names.LINK_LOCAL_RULE_PRIORITY,
        object_names.MARK_RULE_PRIORITY,
        object_names.MARK_RULE_PRIORITY + object_names.UNREACHABLE_OFFSET,
    ]
    wanted = [str(first[0]), f"{first[1]} + {step}", f"{first[2]} + {step}"]
    wanted += [
        object_names.USER_RULE_PRIORITY,
        object_names.USER_UNREACHABLE_PRIORITY,
        object_names.MAIN_RULE_PRIORITY,
        object_names.FINAL_UNREACHABLE_PRIORITY,
    ]
    source = section(file_page(), "ip rules")
    assert re.findall(r"^\.It (\d+(?: \+ \d+)?)", source, re.MULTILINE) == [*map(str, wanted)]
    assert f"above {object_names.FINAL_UNREACHABLE_PRIORITY} are" in plain(source)
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
    assert {253, 254, 255} == validate.RESERVED_TABLES - {0}
    assert "253, 254 and 255" in page


def test_page_has_every_sysctl() -> None:
    documented = re.findall(r"^(net/\S+) = (\S+)$", section(file_page(), "sysctls"), re.MULTILINE)
    compiled = [*sysctls.HOST_SYSCTLS.items()]
    of_devices = [*sysctls.DEVICE_SYSCTLS.items(), *sysctls.ROUTER_ADVERTISEMENT_SYSCTLS.items()]
    compiled += [(path.format(device="DEVICE"), value) for path, value in of_devices]
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
    assert run <= {name for policy in policies for name, one in policy.service.items() if one.marks == "cgroup"}
    assert told or run, "the section says neither a mark nor how to run the program"
    services = [service for policy in policies for service in policy.service.values()]
    ports = {port.low for service in services for port in service.sport}
    assert {int(port) for port in re.findall(r"ListenPort = (\d+)", said)} == (ports if title == "WireGuard" else set())
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


@pytest.mark.parametrize(
    "file", [COMMAND_PAGE, FILE_PAGE, OPENWRT_PAGE, PROVIDERS_PAGE, *PROSE], ids=lambda file: file.name
)
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


def test_changelog_has_this_version() -> None:
    assert f"\n## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


# --- the pages as mdoc --------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed (apt-get install mandoc)")
@pytest.mark.parametrize("file", [COMMAND_PAGE, FILE_PAGE, OPENWRT_PAGE, PROVIDERS_PAGE], ids=lambda file: file.name)
def test_pages_pass_mandoc_lint(file: Path) -> None:
    found = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", file], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
