"""Text for other programs passes a gate: the gates, and no text that is built around them."""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from nftpolicy import generated_text as gates
from nftpolicy.netstate import nft
from nftpolicy.netstate.formats import nft_text
from tests.all_items import check_all

ROOT = Path(__file__).parents[2] / "nftpolicy"
# Modules that make CheckedText of text: the gates.
GATES = {
    "generated_text.py",
    "netstate/formats/ip_text.py",
    "netstate/formats/nft_text.py",
    "netstate/formats/nft_text_values.py",
}
# Modules whose results are read by other programs.
WRITERS = {
    *(str(path.relative_to(ROOT)) for path in (ROOT / "integration").rglob("*.py")),
    "proof/reproduce/script.py",
} - {"integration/openwrt/uci_lint.py", "integration/openwrt/unsupported.py"}  # messages alone
# Text of writers that no other program reads as code, by module and function ("": at module level).
NOT_CODE = {
    ("integration/guard_files.py", "link_guard_path"): "a path that a gate checks later",
    ("integration/guard_files.py", "device_guard_path"): "a path that a gate checks later",
    ("integration/guard_files.py", "block_path"): "a path that a gate checks later",
    ("integration/netconfig/networkmanager.py", "files"): "the name that a UUID is made of",
    ("integration/netconfig/networkd_parser.py", "parse_sections"): "a file that is read",
    ("integration/netconfig/networkd_parser.py", "network_file_of"): "names in a file that is read",
    ("integration/openwrt/flush_filter.py", ""): "numbers of this program",
    ("integration/openwrt/flush_filter.py", "text"): "numbers, which a gate checks as one word",
    ("integration/openwrt/flush_filter.py", "_packets"): "names of places in a program that is not text yet",
    ("integration/openwrt/flush_filter.py", "_find_transport"): "names of places in a program that is not text yet",
    ("integration/openwrt/openwisp.py", ""): "steps for a person",
    ("integration/openwrt/openwisp.py", "template"): "the key of a JSON object",
    ("integration/openwrt/tree.py", "_template"): "lines of a template of this program",
    ("integration/openwrt/tree.py", "build_tree"): "the text of an error",
    ("integration/openwrt/uci.py", "_rule"): "the value of an option, which a gate checks later",
    ("integration/openwrt/uci.py", "_terminal_route"): "the name of a section, which a gate checks later",
    ("integration/procd.py", ""): "paths of this program, which a gate checks later",
    ("integration/systemd_dropins.py", "service_unit_name"): "the name of a unit, checked by its pattern",
    ("integration/systemd_units.py", "resolver_unit"): "the name of a unit, which a gate checks later",
    ("proof/reproduce/script.py", "reproduction_script"): "a remark, quoted later",
    ("proof/reproduce/script.py", "_routing"): "a remark, quoted later",
    ("proof/reproduce/script.py", "_without_ports"): "a remark, quoted later",
    ("proof/reproduce/script.py", "_sysctls"): "a value that is quoted",
    ("proof/reproduce/script.py", "_tables"): "a remark, quoted later",
    ("proof/reproduce/script.py", "_writable_table"): "a remark, quoted later",
}
HOSTILE = ("", "-x", "a b", "a\n", "\n", "$(id)", "`id`", "a;b", "a'b", 'a"b', "a\\", "%i", "{x}", "*", "a#", "\x1b", "\x85",
           "\ud800", "é", "\u202e", "a|b", "a&", "~", "a>b", "END\n")  # fmt: skip


# --- gates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "gate", [gates.word, gates.device_name, gates.sysctl_path, lambda text: gates.scoped_address("fe80::1", text)]
)
def test_hostile_text_is_refused_by_one_line(gate: Callable[[str], str], text: str) -> None:
    with pytest.raises(gates.Unwritable) as refusal:
        gate(text)
    assert str(refusal.value).isprintable() and repr(text) in str(refusal.value)


@pytest.mark.parametrize("text", ["br-wan", "192.0.2.1/24", "fe80::1", "0x1/0xff", "/usr/bin/nftpolicy", "a@b.service"])
def test_plain_word_is_written_unchanged(text: str) -> None:
    assert gates.word(text) == text


def test_device_name_is_no_directory() -> None:
    for text in ("a/b", "..", ".", ".hidden", "x" * 16):
        with pytest.raises(gates.Unwritable):
            gates.device_name(text)
    for text in ("net/../x", "net//x", "/net/x", "kernel/x", "net", "net/x/.."):
        with pytest.raises(gates.Unwritable):
            gates.sysctl_path(text)
    assert gates.device_name("wlan0.7") == "wlan0.7"
    assert gates.sysctl_path("net/ipv4/conf/wlan0.7/forwarding") == "net/ipv4/conf/wlan0.7/forwarding"


def test_quoted_text_is_one_word_of_sh() -> None:
    assert gates.quoted("it's $(id)") == "'it'\"'\"'s $(id)'"
    with pytest.raises(gates.Unwritable):
        gates.quoted("a\nb")


def test_comment_is_one_line() -> None:
    assert gates.comment("a\nb\x1b[2J\u2028c\ud800") == "a b [2J c"


def test_document_line_is_neither_its_end_nor_two_lines() -> None:
    assert gates.document_line("\tEND $x", "END") == "\tEND $x"
    for text in ("END", "a\nEND", "a\r"):
        with pytest.raises(gates.Unwritable):
            gates.document_line(text, "END")


def test_template_takes_numbers_and_checked_text_alone() -> None:
    assert gates.fill("{a:#x} {b}", a=16, b=gates.word("c")) == "0x10 c"
    assert gates.fill_marks("@A@ @B@", {"A": gates.word("@B@"), "B": 2}) == "@B@ 2", "a value is not a template"
    for call in (
        lambda: gates.fill("{a}", a="b"),  # type: ignore[arg-type]
        lambda: gates.fill_marks("@A@", {"A": "b"}),  # type: ignore[dict-item]
        lambda: gates.join("", ["b"]),  # type: ignore[list-item]
    ):
        with pytest.raises(TypeError, match="was not checked: 'b'"):
            call()


def test_element_of_concatenation_is_one_element() -> None:
    item = nft.Set("s", ("inet_proto", "inet_service"))
    assert nft_text.elements_text(item, [("udp", "1")]) == "{ udp . 1 }"
    for hostile in ("udp,tcp", "udp . 1", "udp }", "udp\n"):
        with pytest.raises(ValueError, match="cannot be written"):
            nft_text.elements_text(item, [(hostile, "1")])


def test_display_text_shows_hostile_chain_name() -> None:
    jump = nft.Verdict("jump", "<a")
    verdicts = nft.VerdictMap(nft.Meta("mark"), frozenset({(1, jump)}))
    for item in (jump, verdicts):
        assert "jump <a" in nft_text.display_text(item)
        with pytest.raises(ValueError, match="cannot be written"):
            nft_text.statement_text(item)


# --- no text around the gates ----------------------------------------------------------------


@cache
def tree(name: str) -> ast.Module:
    module = ast.parse((ROOT / name).read_text())
    for parent in ast.walk(module):
        for child in ast.iter_child_nodes(parent):
            child.parent = parent  # type: ignore[attr-defined]
    return module


def parents(node: ast.AST) -> Iterator[ast.AST]:
    while node := getattr(node, "parent", None):  # type: ignore[assignment]
        yield node


def function_of(node: ast.AST) -> str:
    return next((parent.name for parent in parents(node) if isinstance(parent, ast.FunctionDef)), "")


def is_message(node: ast.AST) -> bool:
    return any(isinstance(parent, ast.Raise) for parent in parents(node))


def called(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def built_texts(module: ast.Module) -> Iterator[ast.AST]:
    """Yield what puts values into text: f-strings, format, %, +, and str.join of anything but gates."""
    for node in ast.walk(module):
        if isinstance(node, ast.JoinedStr) and any(isinstance(part, ast.FormattedValue) for part in node.values):
            yield node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            is_text = isinstance(node.func.value, ast.Constant | ast.Name) and node.func.attr in ("format", "join")
            if is_text or node.func.attr in ("format", "replace", "format_map"):
                yield node
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.Add) and is_text_of(node):
            yield node


def is_text_of(node: ast.BinOp) -> bool:
    sides = node.left, node.right
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in sides
    )


@check_all(sorted(WRITERS))
def test_writer_builds_no_text_around_the_gates(name: str) -> None:
    found = [
        f"{node.lineno}: {ast.unparse(node)}"  # type: ignore[attr-defined]
        for node in built_texts(tree(name))
        if not is_message(node) and (name, function_of(node)) not in NOT_CODE
    ]
    assert found == []


def test_built_texts_are_found() -> None:
    code = (
        "f'set {x}'",
        "'set {}'.format(x)",
        "T.format(x)",
        "'set %s' % x",
        "'set ' + x",
        "' '.join(x)",
        "t.replace(a, b)",
    )
    for text in code:
        assert list(built_texts(ast.parse(text))), text
    assert not list(built_texts(ast.parse("fill('set {x}', x=word(x)); join(' ', x); 1 + 2; f'plain'")))


@check_all(sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")))
def test_only_gates_declare_text_checked(name: str) -> None:
    """Templates and own text are literals or constants, so no value can be in them before a gate."""
    for node in ast.walk(tree(name)):
        match called(node):
            case "CheckedText":
                assert name in GATES, ast.unparse(node)
            case "own_text" | "fill" if name != "generated_text.py":
                assert isinstance(node, ast.Call)
                assert is_own(node.args[0], node), ast.unparse(node)


def is_own(argument: ast.expr, call: ast.Call) -> bool:
    """Return True for a literal, a constant, or a variable of the function that is only ever a literal."""
    if isinstance(argument, ast.Constant):
        return True
    if isinstance(argument, ast.IfExp):
        return is_own(argument.body, call) and is_own(argument.orelse, call)
    if isinstance(argument, ast.Subscript):
        argument = argument.value
    if not isinstance(argument, ast.Name):
        return False
    if argument.id.strip("_").isupper():
        return True
    function = next(parent for parent in parents(call) if isinstance(parent, ast.FunctionDef | ast.Module))
    values = [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == argument.id for target in node.targets)
    ]
    return bool(values) and all(isinstance(value, ast.Constant) or is_own(value, call) for value in values)


# --- no code in other modules ------------------------------------------------------------------

CODE = re.compile(
    r"^\s*(#!/|set -|ip -|rule add|route add|addr add|link add|(add|delete|flush|list|create) (table|chain|"
    r"rule|set|map|element|counter|ruleset)|table (ip|inet|netdev|\{)|config |option |uci |nameserver|\[(Unit|Service|"
    r"Match|Network|connection)|Exec\w+=|Environment=|User=|Group=|--[a-z-]+=)|\bset network\."
)
# Text like code that no program reads, or whose values this program has chosen, by module.
DISPLAYED = {
    "integration/openwrt/uci_lint.py": "messages",
    "importers/machine/steps.py": "steps for a person",
    "cli/watch.py": "tables of this program, by constants",
    "model/fib/rpdb.py": "steps of a trace",
    "kernel/nft_list.py": "names that nft_text has checked",
    "runtime/apply/step_text.py": "a plan for display",
    "runtime/import_openwrt.py": "a report",
    "runtime/watch/repair_plan.py": "tables of this program, by nft_text",
}


@check_all(sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")))
def test_module_that_is_no_writer_builds_no_code(name: str) -> None:
    if name in WRITERS | GATES | DISPLAYED.keys() or name.startswith(("proof/reproduce/", "netstate/formats/nft_text")):
        return
    found = [f"{node.lineno}: {ast.unparse(node)}" for node in code_texts(tree(name)) if not is_message(node)]
    assert found == []


def code_texts(module: ast.Module) -> Iterator[ast.JoinedStr]:
    for node in ast.walk(module):
        if isinstance(node, ast.JoinedStr) and len(node.values) > 1:
            first = node.values[0]
            if isinstance(first, ast.Constant) and CODE.search(first.value):
                yield node


def test_code_in_other_modules_is_found() -> None:
    for text in (
        "add table inet {x}",
        "nameserver {x}",
        "ExecStart={x}",
        "ip -4 rule add {x}",
        "uci set {x}",
        "--user={x}",
    ):
        assert list(code_texts(ast.parse(f"f{text!r}"))), text
