"""Fuzz targets for commands that read documents, in this process: no traceback, no line and no status but ours.

No command here reads or changes this kernel.
"""

import gc
import io
import json
import os
import random
import re
import signal
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from attrs import evolve

from fuzz.hostile_text import MARKER, draw_text
from fuzz.kernel_listings import load_fixture
from fuzz.written_text import POLICY, STATE, policy
from nftpolicy.cli import common
from nftpolicy.cli.main import main
from nftpolicy.compiler.compile import compile_policy
from nftpolicy.netstate.formats import nft_json_encode
from nftpolicy.runtime.snapshot import PolicyInForce, Snapshot, encode_snapshot
from tests.openwrt.router_configs import CASES
from tests.unit.test_router_snapshot import snapshot_text

STATUSES = {0, common.EXIT_REFUTED, common.EXIT_BAD_INPUT, common.EXIT_UNKNOWN, common.EXIT_FAILED}
# Characters that no command prints, but for the colours of this program; black is not among them.
COLOUR = re.compile("\x1b\\[(0|1|2|3[1-7]|1;3[1-7]|2;3[1-7])m")
PROGRESS = re.compile("\r\x1b\\[K(proving [ -~]*)?")  # of a proof that takes more than a second
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
NUMBERS = (0, 1, -1, 255, 2**31, 2**32, 2**64, 10**400, 1.5, float("nan"), float("inf"), True, None, [], {}, "")
PACKET = {"--to": "198.51.100.9", "--dev": "br-wan", "--mark": "1", "--proto": "udp", "--field": "ip.ttl=3"}


class Terminal(io.BytesIO):
    """Output that looks like a terminal to the command, or like a pipe."""

    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@contextmanager
def streams(is_terminal, stdin):
    """Replace the streams of this process; yield the bytes of stdout and stderr as they grow."""
    saved = sys.stdin, sys.stdout, sys.stderr, sys.argv, signal.getsignal(signal.SIGTERM)
    buffers = Terminal(is_terminal), Terminal(is_terminal)
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
    sys.stdout, sys.stderr = (io.TextIOWrapper(buffer, encoding="utf-8") for buffer in buffers)
    try:
        yield buffers
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            stream.detach()
        sys.stdin, sys.stdout, sys.stderr, sys.argv = saved[:4]
        signal.signal(signal.SIGTERM, saved[4])
        gc.enable()


def run_command(arguments, is_terminal=False, stdin=b""):
    """Return the exit status of a command, its standard output and its standard error."""
    with streams(is_terminal, stdin) as (out, err):
        sys.argv = ["nftpolicy", *arguments]
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        return status, out.getvalue().decode(), err.getvalue().decode()


# --- documents ---------------------------------------------------------------------------------


@cache
def documents():
    """Return the text of a good document of each kind."""
    state = compile_policy(policy())
    small = evolve(STATE, tables=state.tables[:1])
    stored = PolicyInForce("policy.toml", POLICY.decode(), (("group", "800", 800), ("user", "900", 900)))
    snapshot = Snapshot(small, {"br-wan": ("eth0",)}, frozenset({"lo", "wan"}), True, (4, 6), stored, "0", "6.1", "t")
    return {
        "policy": POLICY.decode(),
        "ruleset": json.dumps(nft_listing(state.tables[:1])),
        "docker": json.dumps(load_fixture("stock/docker.json")),
        "rules": json.dumps(load_fixture("default-router/ip4-rule.json")),
        "routes": json.dumps(load_fixture("default-router/ip4-route.json")),
        "snapshot": encode_snapshot(snapshot),
        "router": snapshot_text(),
        "network": CASES[sorted(CASES)[0]].files["network"],
    }


def nft_listing(tables):
    commands = nft_json_encode.encode_ruleset(tables)["nftables"]
    return {"nftables": [command["add"] for command in commands if "add" in command]}


def mutate(choices, text):
    """Return the bytes of a document with one or two places changed."""
    data = text
    for _ in range(choices.choice((1, 1, 2))):
        if data.startswith(("{", "[")) and choices.random() < 0.8:
            document = json.loads(data)
            data = json.dumps(_with_changed_place(choices, document), ensure_ascii=choices.random() < 0.7)
        else:
            data = _with_changed_piece(choices, data)
            if data.startswith(("{", "[")):
                break
    return data.encode("utf-8", choices.choice(("surrogatepass", "replace")))


def _with_changed_piece(choices, text):
    """Return text with hostile text in place of a word or of any piece."""
    words = [match.span() for match in re.finditer(r"[\w./:-]+", text)]
    start, end = (
        choices.choice(words)
        if words and choices.random() < 0.7
        else sorted(choices.choices(range(len(text) + 1), k=2))
    )
    if end - start > 40 and choices.random() < 0.9:
        end = start + choices.randrange(12)
    return text[:start] + draw_text(choices) + text[end:]


def _with_changed_place(choices, item):
    """Return a JSON document with a value, a key or an entry changed."""
    if not isinstance(item, dict | list) or not item or choices.random() < 0.02:
        return draw_text(choices) if isinstance(item, str) or choices.random() < 0.5 else choices.choice(NUMBERS)
    if isinstance(item, list):
        index = choices.randrange(len(item))
        return [*item[:index], _with_changed_place(choices, item[index]), *item[index + 1 :]]
    key = choices.choice(list(item))
    if choices.random() < 0.05:
        return {**{other: value for other, value in item.items() if other != key}, draw_text(choices): item[key]}
    return {**item, key: _with_changed_place(choices, item[key])}


# --- commands ----------------------------------------------------------------------------------


def draw_command(choices, directory):
    """Write documents, one of them or its name or an option with hostile text; return the words of a command."""
    kinds, words = choices.choice(COMMANDS)
    hostile = choices.choice((*kinds, "name", "option", *kinds))
    paths = {}
    for kind in kinds:
        text = documents()[kind]
        data = mutate(choices, text) if kind == hostile else text.encode()
        name = file_name(choices) if hostile == "name" else kind
        paths[kind] = directory / name
        if kind == "network":
            paths[kind].mkdir()
            (paths[kind] / "network").write_bytes(data)
        else:
            paths[kind].write_bytes(data)
    result = [str(word).format(**paths) for word in words]
    if "--to" in words and words[0] == "explain" and hostile != "option":
        option = choices.choice(list(PACKET))
        result += [option, PACKET[option]]
    if hostile == "option":
        places = [index for index, word in enumerate(words) if index and "{" not in word]
        index = choices.choice(places) if places else len(result)
        result[index : index + 1] = [draw_text(choices).replace("\0", "").encode("utf-8", "replace").decode()]
        if unsafe(result):
            return draw_command(choices, Path(tempfile.mkdtemp(dir=directory)))
    return result


def unsafe(words):
    """Return True for words that could make a command write a file or read this kernel."""
    return words[0] in ("netconfig", "units", "import") and any("/" in word or word == "--to" for word in words[-1:])


def file_name(choices):
    """Return a name that a file can have; bytes that are not UTF-8 are halves of surrogate pairs."""
    name = draw_text(choices).replace("\0", "").replace("/", "")
    name = "".join(char for char in name if not 0xD800 <= ord(char) < 0xDC80 and not 0xDCFF < ord(char) < 0xE000)
    encoded = os.fsencode(name)[:200]
    return os.fsdecode(encoded) if encoded.strip(b".") else "x"


UPLINK = ["--uplink", "wan=br-wan", "--mark", "0x1/0xff"]
COMMANDS = (
    (["policy"], ["check", "{policy}"]),
    (["policy"], ["compile", "{policy}", "--to", "summary"]),
    (["policy"], ["compile", "{policy}", "--to", "nft"]),
    (["policy"], ["verify", "{policy}"]),
    (["policy"], ["netconfig", "{policy}", "--for", "networkmanager"]),
    (["policy"], ["units", "{policy}", "--program", "/usr/bin/nftpolicy"]),
    (["policy"], ["explain", "{policy}", "--compiled", "--to", "198.51.100.9"]),
    (["ruleset"], ["verify", "--ruleset", "{ruleset}", *UPLINK]),
    (["docker", "rules", "routes"],
     ["verify", "--ruleset", "{docker}", "--rules", "{rules}", "--routes", "{routes}", *UPLINK]),
    (["rules", "routes", "ruleset"],
     ["verify", "--ruleset", "{ruleset}", "--rules", "{rules}", "--routes", "{routes}", *UPLINK, "--script", "-"]),
    (["ruleset", "routes"], ["verify", "--ruleset", "{ruleset}", "--routes", "{routes}", *UPLINK, "--json"]),
    (["snapshot"], ["verify", "--snapshot", "{snapshot}", *UPLINK]),
    (["snapshot"], ["verify", "--snapshot", "{snapshot}"]),
    (["router"], ["verify", "--snapshot", "{router}", *UPLINK]),
    (["docker", "rules", "routes"],
     ["explain", "--ruleset", "{docker}", "--rules", "{rules}", "--routes", "{routes}", "--to", "198.51.100.9"]),
    (["docker", "routes"],
     ["explain", "--ruleset", "{docker}", "--routes", "{routes}", "--to", "198.51.100.9", "--json"]),
    (["network"], ["import", "openwrt", "{network}"]),
)  # fmt: skip


def check_command(seed):
    """Check the status and the output of a command with hostile text."""
    choices = random.Random(seed)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arguments = draw_command(choices, directory)
        is_terminal = choices.random() < 0.5
        status, out, err = run_command(arguments, is_terminal)
        err = PROGRESS.sub("", err) if is_terminal else err
    facts = (status, arguments, out[-2000:], err[-2000:])
    assert status in STATUSES, facts
    assert "Traceback" not in err and "internal error" not in err, facts
    if status == common.EXIT_REFUTED:
        assert is_refutation(arguments, out, err), facts
    for text in (out, err):
        assert not RAW.search(COLOUR.sub("", text) if is_terminal else text), facts
    for line in (out + "\n" + err).split("\n"):
        assert not line.startswith(MARKER) or arguments[0] in ("compile", "netconfig", "units", "import"), facts
    if "--json" in arguments and status in (0, common.EXIT_REFUTED, common.EXIT_UNKNOWN):
        json.loads(out)


def is_refutation(arguments, out, err):
    """Return True if the output says that something is refuted, or that model and kernel disagree."""
    return arguments[0] in ("check", "verify", "compile") and re.search("refuted", out + err, re.IGNORECASE)
