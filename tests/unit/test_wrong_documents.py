"""Documents that are not what they should be: one line that names the file and the fault, never a verdict."""

import pytest

from tests.unit import test_policy_errors as policies
from tests.unit.command_line import run_here

RULESET = b'{"nftables": [{"metainfo": {"version": "1.0.6", "json_schema_version": 1}}]}'
RULES, ROUTES = "ip -j -N rule", "ip -j -N route show table all"
# Document -> what is wrong with it, for a reader of JSON.
NOT_JSON = {
    b"": "it is empty",
    b" \n": "it is empty",
    b"\xff\xfe\x00": "byte 2 is not UTF-8",
    b"\x00" * 9: "byte 8 is not UTF-8",  # read as UTF-32
    b"table inet x {\n}\n": "it begins with 'table inet x {\\n}\\n'",
    b"0:\tfrom all lookup local\n": "it begins with '0:\\tfrom all lookup ",
    b"<html>": "it begins with '<html>'",
    b'name = "p"\n': "it begins with 'name = \"p\"\\n'",
    b'{"nftables": [': "it ends in line 1, before the document is complete",
    b'[{"a": 1},\n': "it ends in line 1, before the document is complete",
    b"[1 2]": "line 1, column 4: expecting ',' delimiter",
    b"[\n{'a': 1}]": "line 2, column 2: expecting property name enclosed in double quotes",
    b"[" * 90_000: "it is nested too deeply",
    b'{"a": 1, "a": 2}': "the key 'a' is there twice",
}
NOT_RULESET = (
    b"[]",
    b"{}",
    b"1",
    b'"x"',
    b"null",
    b'{"nftables": 1}',
    b'{"nftables": {}}',
    b'[{"priority": 0, "src": "all"}]',
)
NOT_LIST = (b"{}", b"1", b'"x"', b"null", b"[1]", b'[{"x": 1}]', b'[{"priority": "x"}]', RULESET)
NOT_SNAPSHOT = (b"[]", b"{}", b"1", b"null", b'{"format": "nftpolicy snapshot 99"}', RULESET)
UPLINK = ("--uplink", "wan=wan", "--mark", "1/1")


@pytest.fixture
def refusal(tmp_path):
    """Return a function that returns the one line with which a command refuses a document."""
    (tmp_path / "ruleset").write_bytes(RULESET)
    file = tmp_path / "document"

    def refuse(content, *arguments):
        file.write_bytes(content)
        places = {"FILE": file, "RULESET": tmp_path / "ruleset"}
        status, output, errors = run_here(*(places.get(word, word) for word in arguments))
        assert (status, output) == (2, ""), errors
        assert errors.startswith(f"nftpolicy: {file}: ") and errors.count("\n") == 1 and len(errors) < 600
        return errors.removeprefix(f"nftpolicy: {file}: ").rstrip("\n")

    return refuse


COMMANDS = {
    "nft -j list ruleset": (("verify", "--ruleset", "FILE", *UPLINK), ("explain", "--ruleset", "FILE", "--to", "192.0.2.1")),
    RULES: (("verify", "--ruleset", "RULESET", "--rules", "FILE", *UPLINK),),
    ROUTES: (("verify", "--ruleset", "RULESET", "--routes", "FILE", *UPLINK),),
    "nftpolicy snapshot": (("verify", "--snapshot", "FILE", *UPLINK),),
}  # fmt: skip
BAD = {"nft -j list ruleset": NOT_RULESET, RULES: NOT_LIST, ROUTES: NOT_LIST, "nftpolicy snapshot": NOT_SNAPSHOT}


@pytest.mark.parametrize("printer", COMMANDS)
def test_document_that_is_not_json_is_named(printer, refusal):
    for command in COMMANDS[printer]:
        for content, fault in NOT_JSON.items():
            assert refusal(content, *command).startswith(f"not the JSON that '{printer}' prints: {fault}")


@pytest.mark.parametrize("printer", COMMANDS)
def test_json_of_another_program_is_named(printer, refusal):
    words = "not a snapshot of this version: " if printer == "nftpolicy snapshot" else f"not what '{printer}' prints: "
    for command in COMMANDS[printer]:
        for content in BAD[printer]:
            message = refusal(content, *command)
            assert message.startswith(words), (content, message)


def test_file_that_cannot_be_read_is_named(tmp_path):
    for name, reason in ((tmp_path / "absent", "No such file or directory"), (tmp_path, "Is a directory")):
        for command in (command for commands in COMMANDS.values() for command in commands):
            words = [{"FILE": name, "RULESET": "/dev/null"}.get(word, word) for word in command]
            expected = f"nftpolicy: {name}: cannot be read: {reason}\n"
            if "RULESET" not in command:
                assert run_here(*words) == (2, "", expected)


def test_endless_file_is_named():
    said = "nftpolicy: /dev/zero: cannot be read: larger than 256 MiB\n"
    assert run_here("check", "/dev/zero") == (2, "", said)


# File /etc/config/network -> what is wrong with it, after its name.
NOT_UCI = {
    b"x": ":1: expected 'package', 'config', 'option' or 'list' at the start of a line, not 'x'",
    b'{"a":1}': ":1: expected 'package', 'config', 'option' or 'list' at the start of a line, not '{a:1}'",
    b"<html>": ":1: expected 'package', 'config', 'option' or 'list' at the start of a line, not '<html>'",
    b"config": ":1: 'config' takes a type and an optional name, not 0 words",
    b"config interface wan\n option": ":2: 'option' takes a name and one value, not 0 words; quote it",
    b"option a b": ":1: 'option' outside a section; add a line 'config TYPE' before it",
    b"config interface 'wan\n option a b": ":1: the quote ' is not closed",
    b"config interface wan\n option a b\\": ":2: the file ends after a backslash",
    b"\xff\xfe\0": ":1: not UTF-8 text, so not valid UCI",
    b"config interface wan\n option a \0": ":2: NUL byte, so not valid UCI",
}


def test_file_that_is_not_uci_is_named(tmp_path):
    file = tmp_path / "network"
    for content, fault in NOT_UCI.items():
        file.write_bytes(content)
        assert run_here("import", "openwrt", tmp_path) == (2, "", f"nftpolicy: {file}{fault}\n")
    for content in (b"", b"config interface lan\n"):
        file.write_bytes(content)
        status, output, errors = run_here("import", "openwrt", tmp_path)
        assert (status, output) == (2, "")
        assert errors.startswith(f"nftpolicy: {tmp_path}: no uplink found: ")
        assert errors.count("\n") == 1


def test_each_fault_of_a_policy_has_one_answer(tmp_path):
    file = tmp_path / "policy.toml"
    for good, bad, key, words in policies.BAD:
        file.write_text(policies.GOOD.replace(good, bad))
        status, output, errors = run_here("check", file)
        assert (status, output) == (2, ""), errors
        answers = [line for line in errors.splitlines() if line.startswith(f"nftpolicy: {file}:")]
        assert [words in line and f" {key}: " in line for line in answers].count(True) == 1, errors
        others = [line for line in errors.splitlines() if line not in answers]
        assert all(line.startswith("    ") for line in others), errors  # lines of the source, and carets
