"""Control characters from names and documents do not reach the terminal, by any command."""

import io
import json
import os
import pty
import subprocess
import sys

import pytest
from rich.text import Text

from nftpolicy.cli.plain_output import plain_line, plain_text
from nftpolicy.cli.render import terminal
from tests.lab.limits import limit

HOSTILE = "a\x1b[2J\x1b[31mb\x1b]0;title\x07\r\x08\x7f\x9b1mc\u202ed\u2028e\ud800f"
ESCAPED = r"a\x1b[2J\x1b[31mb\x1b]0;title\x07\r\x08\x7f\x9b1mc\u202ed\u2028e\ud800f"


def run_plain(code: str, tty: bool) -> bytes:
    """Return what a program prints through the streams of all commands, to a terminal or a pipe."""
    program = f"from nftpolicy.cli.plain_output import plain_streams; plain_streams(); {code}"
    if not tty:
        return subprocess.run(
            [sys.executable, "-c", program], capture_output=True, check=True, timeout=limit(60)
        ).stdout
    parent, child = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=child, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(child)
        output = b""
        while True:
            try:
                piece = os.read(parent, 4096)
            except OSError:  # EIO: the other end is closed
                break
            if not piece:
                break
            output += piece
    os.close(parent)
    assert process.returncode == 0
    return output.replace(b"\r\n", b"\n")


def test_escapes_are_readable() -> None:
    assert plain_line(HOSTILE + "\n\t") == ESCAPED + r"\n\t"
    assert plain_text("a\n\tb" + HOSTILE) == "a\n\tb" + ESCAPED
    assert plain_line("br-wan, Ümlaut, 日本") == "br-wan, Ümlaut, 日本"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_print_escapes_control_characters(stream: str) -> None:
    code = f"import sys; sys.stderr.reconfigure(); print({HOSTILE!r}, file=sys.{stream})"
    program = f"from nftpolicy.cli.plain_output import plain_streams; plain_streams(); {code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=limit(60))
    assert getattr(done, stream).decode() == ESCAPED + "\n"


CONSOLE = "from nftpolicy.cli.render.terminal import *; from rich.text import Text; c = make_console(soft_wrap=True); "
PRINTS = {
    "nested": f"from rich.padding import Padding; c.print(Padding(Text({HOSTILE!r}), 1))",
    "group": f"from rich.console import Group; c.print(Group({HOSTILE!r}, Text({HOSTILE!r})))",
    "plain print": f"print({HOSTILE!r})",
    "json": f"from nftpolicy.cli.plain_output import print_json; print_json({{{HOSTILE!r}: {HOSTILE!r}}})",
    "text": f"c.print({HOSTILE!r})",
    "styled": f"c.print(Text({HOSTILE!r}, 'bold'))",
    "line": f"print_styled([({HOSTILE!r}, 'red')])",
    "cell": f"t = make_table('x'); t.add_row({HOSTILE!r}); c.print(t)",
    "styled cell": f"t = make_table('x'); t.add_row(styled('good', 'green', {HOSTILE!r})); c.print(t)",
    "title": f"t = make_table({HOSTILE!r}); c.print(t)",
    "markup": "t = make_table('x'); t.add_row('[red]a[/] [/] [b'); c.print(t); c.print('[/]')",
}


@pytest.mark.parametrize("kind", PRINTS)
def test_terminal_gets_only_colours_of_this_program(kind: str) -> None:
    printed = run_plain(CONSOLE + PRINTS[kind], tty=True).decode()
    for sequence in ("\x1b[2J", "\x1b[31mb", "\x1b]", "\x07", "\x9b", "\u202e", "\u2028", "\x08"):
        assert sequence not in printed, printed
    if kind == "json":
        assert json.loads(printed) == {HOSTILE: HOSTILE}
    elif kind == "markup":
        assert "[red]a[/] [/] [b" in printed and printed.rstrip().endswith("[/]")
    else:
        assert r"\x1b[2J\x1b[31mb" in printed.replace("\n", "")
    if kind == "styled cell":
        assert "\x1b[32mgood\x1b[0m" in printed, "the control: colours of this program are kept"


def test_console_escapes_in_texts_too(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.make_console(soft_wrap=True).print(Text(HOSTILE), HOSTILE)
    assert capsys.readouterr().out.count(r"\x1b[2J") == 2


def test_internal_error_is_one_line_and_status_70(tmp_path) -> None:
    code = (
        "import sys; sys.argv = ['nftpolicy', 'check', 'x']; import nftpolicy.cli.common as common\n"
        "def fail(*_): raise RuntimeError('two\\nlines \\x1b[2J')\n"
        "common.read_policy = fail\n"
        "import nftpolicy.cli.main as main\n"
        "main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=limit(60), check=False)
    assert (done.returncode, done.stdout) == (70, "")
    assert done.stderr.startswith("nftpolicy: internal error: RuntimeError two lines ")
    assert done.stderr.count("\n") == 1 and "\x1b" not in done.stderr
    wordy = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=limit(60), check=False,
        env={**os.environ, "NFTPOLICY_TRACEBACK": "1"},
    )  # fmt: skip
    assert wordy.returncode == 70 and "Traceback" in wordy.stderr


def test_streams_that_are_no_files_stay() -> None:
    from nftpolicy.cli import plain_output

    stream = io.StringIO()
    assert plain_output._plain_stream(stream, "standard output") is stream
