"""Exit status 1 means refuted: all commands with bad input, lost output, interruption and defects have another one."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nftpolicy.cli import common
from nftpolicy.cli.main import COMMANDS
from tests.forked_program import run_program
from tests.lab import syscalls
from tests.lab.limits import limit
from tests.unit.test_policy_errors import GOOD

# Before the command runs: an exception or a signal inside it.
MAIN = "import sys; from nftpolicy.cli.main import main; {before}; main()"
BAD_INPUT, UNAVAILABLE, FAILED = common.EXIT_BAD_INPUT, common.EXIT_UNAVAILABLE, common.EXIT_FAILED
WITHOUT_FILE = {
    "confirm",
    "history",
    "recover",
    "demo",
    "import",
    "init",
    "uninstall",
    "rollback",
    "run",
    "snapshot",
    "release",
}
WITH_FILE = [command for command in COMMANDS if command not in WITHOUT_FILE]
NEEDED = {"netconfig": ["--for", "networkd"]}
HOSTILE = "\x1b[2J\x1b[31m\x9b1m\u202e\nnftpolicy: proved\r"
NAME = "\x9b1m\u202e\u2028\udcff nftpolicy: proved"  # that a file may have


# No test changes the machine's network, even if a command accepts what it should refuse.
UNSHARE = ["unshare", "--net", "--mount"] if os.geteuid() == 0 else []


# Run as nobody, in a machine with a state directory as root makes it.
AS_NOBODY = [*UNSHARE, "sh", "-c", "mount -t tmpfs none /run && mkdir -m 700 /run/nftpolicy && "
             'exec setpriv --reuid 65534 --regid 65534 --clear-groups -- "$@"', "sh"]  # fmt: skip


def leave_namespaces():
    """Leave the machine's network and mounts, as `unshare` does."""
    if os.geteuid() == 0:
        syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)


def run(*arguments, **options):
    return run_program(*arguments, prepare=leave_namespaces, **options)


def run_alone(*arguments, before="pass", prefix=UNSHARE, cwd=None):
    """Run a command in a new interpreter, after the statement `before`."""
    command = [*prefix, sys.executable, "-c", MAIN.format(before=before), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=limit(60), check=False, cwd=cwd)


def assert_refused(done, *statuses):
    assert done.returncode in statuses, (done.returncode, done.stderr)
    assert done.stdout == b""
    assert done.stderr and b"Traceback" not in done.stderr and b"internal error" not in done.stderr
    assert not {0x1B, 0x0D} & set(done.stderr) and "\u202e" not in done.stderr.decode()
    assert not [line for line in done.stderr.splitlines() if line == b"nftpolicy: proved"], "a line of the input"


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_option_and_too_many_words_are_status_2(command):
    assert_refused(run(command, "--nonsense"), BAD_INPUT)
    assert_refused(run(command, f"--{HOSTILE}"), BAD_INPUT)
    assert_refused(run(command, f"--{NAME}"), BAD_INPUT)
    assert_refused(run(command, *[NAME] * 9, "--help=no"), BAD_INPUT)


@pytest.mark.parametrize("command", WITH_FILE)
@pytest.mark.parametrize("content", [None, b"", b"\xff\x00", b"a = ", b'name = "\\u001b[2J"', b"a = " + b"[" * 9000])
def test_bad_policy_is_never_status_1(command, content, tmp_path):
    file = tmp_path / f"policy{NAME}.toml"
    if content is not None:
        file.write_bytes(content)
    assert_refused(run(command, file, *NEEDED.get(command, ())), BAD_INPUT, UNAVAILABLE)


@pytest.mark.parametrize("command", ["verify", "explain"])
@pytest.mark.parametrize("content", [None, b"", b"\xff", b"[]", b'{"nftables": 1}', b"[" * 90000, b'{"a": NaN}'])
def test_bad_document_is_status_2(command, content, tmp_path):
    file = tmp_path / f"document{NAME}"
    if content is not None:
        file.write_bytes(content)
    packet = ["--to", "192.0.2.1"] if command == "explain" else ["--uplink", "wan=wan", "--mark", "1/1"]
    assert_refused(run(command, "--ruleset", file, *packet), BAD_INPUT)


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"{}", b"# nftpolicy snapshot", b'{"format": "\\u001b[2J"}'])
def test_bad_snapshot_is_status_2(content, tmp_path):
    file = tmp_path / f"document{NAME}"
    if content is not None:
        file.write_bytes(content)
    assert_refused(run("verify", "--snapshot", file, "--uplink", "wan=wan", "--mark", "1/1"), BAD_INPUT)


@pytest.mark.parametrize("content", [None, b"\xff", b"config '\x1b[2J", b"option a b"])
def test_bad_router_configuration_is_status_2(content, tmp_path):
    directory = tmp_path / f"config{NAME}"
    directory.mkdir()
    if content is not None:
        (directory / "network").write_bytes(content)
    assert_refused(run("import", "openwrt", directory), BAD_INPUT)


OPTIONS = (
    ("verify", "--ruleset", "/dev/null", "--uplink", NAME, "--mark", "1/1"),
    ("verify", "--ruleset", "/dev/null", "--uplink", "wan=wan", "--mark", NAME),
    ("verify", "--ruleset", "/dev/null", "--uplink", "wan=wan", "--mark", "1/1", "--exempt", NAME),
    ("verify", "--ruleset", "/dev/null", "--chain-device", NAME, "--uplink", "wan=wan", "--mark", "1/1"),
    ("explain", "--to", NAME), ("explain", "--to", "192.0.2.1", "--dport", NAME),
    ("explain", "--to", "192.0.2.1", "--field", NAME), ("explain", "--to", "192.0.2.1", "--uid", NAME),
    ("explain", "--to", "192.0.2.1", "--state", NAME), ("explain", "--to", "192.0.2.1", "--proto", NAME),
    ("compile", "FILE", "--to", NAME), ("compile", "FILE", "--ports", NAME), ("units", "FILE", "--unit", NAME),
    ("units", "FILE", "--to", NAME), ("netconfig", "FILE", "--for", NAME),
    ("install", "--destdir", "DIRECTORY", "--unitdir", NAME),
    ("install", "--destdir", "DIRECTORY", "--program", NAME),
    ("units", "FILE", "--program", NAME), ("wait", "--timeout", NAME), ("guard", "FILE", "--no-load", "--to", "/"),
)  # fmt: skip


@pytest.mark.parametrize("arguments", OPTIONS, ids=lambda item: f"{item[0]} {item[-2]}")
def test_bad_value_of_an_option_is_never_status_1(arguments, tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text(GOOD)
    words = [{"FILE": file, "DIRECTORY": tmp_path}.get(word, word) for word in arguments]
    assert_refused(run(*words, cwd=tmp_path), BAD_INPUT, UNAVAILABLE, FAILED)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run as another user")
@pytest.mark.parametrize("command", ["apply", "confirm", "rollback", "history", "recover", "status", "watch", "probe"])
def test_command_without_root_is_status_4(command):
    if run_alone("--version", prefix=AS_NOBODY, cwd="/").returncode:
        pytest.skip("the checkout cannot be read by another user than root")
    assert_refused(run_alone(command, prefix=AS_NOBODY, cwd="/"), UNAVAILABLE, BAD_INPUT)


@pytest.mark.parametrize(("number", "status"), [(errno.EACCES, UNAVAILABLE), (errno.EPERM, FAILED)])
def test_unreadable_state_directory_is_no_defect(number, status):
    class Unreadable:
        def policy(self):
            raise PermissionError(number, "belongs to user 7", "/run/x")

    with pytest.raises(common.Failure) as caught:
        common.applied_policy(Unreadable())
    assert caught.value.status == status
    assert (
        str(caught.value)
        == {
            UNAVAILABLE: "this needs root: try again with sudo",
            FAILED: "/run/x: belongs to user 7",
        }[status]
    )


# --- output, signals, defects --------------------------------------------------------------------


def test_full_output_is_status_5():
    with Path("/dev/full").open("wb") as full:
        for arguments in (["--version"], ["check", "rulesets/gluon-fastd.toml"], ["verify", "--help"]):
            command = [sys.executable, "-c", MAIN.format(before="pass"), *arguments]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=limit(60), check=False)
            said = b"nftpolicy: standard output: cannot be written: No space left on device\n"
            assert (done.returncode, done.stderr) == (FAILED, said)


def test_closed_output_is_status_141():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", MAIN.format(before="pass"), "check", "rulesets/gluon-fastd.toml"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=limit(60), check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (common.EXIT_OUTPUT_CLOSED, b"")


def run_without(descriptor, *arguments):
    """Run a command with one of the standard streams closed."""
    command = [sys.executable, "-c", MAIN.format(before="pass"), *arguments]
    shell = ["sh", "-c", f'exec "$@" {descriptor}>&-', "sh", *command]
    return subprocess.run(shell, capture_output=True, timeout=limit(60), check=False)


def test_stream_that_is_closed_from_the_start_is_no_traceback():
    done = run_without(1, "check", "rulesets/gluon-fastd.toml")
    said = b"nftpolicy: standard output: cannot be written: Bad file descriptor\n"
    assert (done.returncode, done.stdout, done.stderr[-len(said) :]) == (FAILED, b"", said)
    done = run_without(2, "check", "/absent")
    assert (done.returncode, done.stdout, done.stderr) == (BAD_INPUT, b"", b"")
    done = run_without(0, "check", "-")
    said = b"nftpolicy: standard input: cannot be read: Bad file descriptor\n"
    assert (done.returncode, done.stderr) == (BAD_INPUT, said)


def test_no_output_at_all_is_no_traceback():
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-c", MAIN.format(before="pass"), "check", "/absent"]
        assert (
            subprocess.run(command, stdout=full, stderr=full, timeout=limit(60), check=False).returncode
            != common.EXIT_REFUTED
        )


BREAK = "import nftpolicy.cli.common as common; common.read_policy = lambda *_: {}"


@pytest.mark.parametrize(
    ("broken", "status"),
    [
        ("1 / 0", common.EXIT_DEFECT),
        ("[].pop()", common.EXIT_DEFECT),
        ("(_ for _ in ()).throw(RecursionError)", common.EXIT_DEFECT),
        ("(_ for _ in ()).throw(MemoryError)", common.EXIT_DEFECT),
        ("(_ for _ in ()).throw(EOFError)", common.EXIT_DEFECT),
        ("(_ for _ in ()).throw(OSError(5, 'I/O'))", common.EXIT_DEFECT),
        ("sys.exit('text')", common.EXIT_DEFECT),
        ("(_ for _ in ()).throw(KeyboardInterrupt)", 128 + signal.SIGINT),
        ("(_ for _ in ()).throw(__import__('typer').Abort)", common.EXIT_DEFECT),
        ("__import__('os').kill(__import__('os').getpid(), 15)", 128 + signal.SIGTERM),
    ],
)
def test_exception_has_a_status_of_its_own(broken, status):
    done = run_alone("check", "x", before=BREAK.format(broken))
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr


def test_interrupt_from_a_terminal_is_status_130(tmp_path):
    os.mkfifo(tmp_path / "policy")
    command = [sys.executable, "-c", MAIN.format(before="pass"), "check", str(tmp_path / "policy")]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a caller may ignore it
    ) as process:
        writer = os.open(tmp_path / "policy", os.O_WRONLY)  # waits until the command reads
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=limit(60))
        os.close(writer)
    assert process.returncode == 128 + signal.SIGINT
    assert said in ((b"", b""), (b"", b"\n"))  # typer 0.7 ends the line of ^C


def test_refuted_policy_is_status_1(tmp_path):
    (tmp_path / "ruleset").write_text('{"nftables": []}')
    (tmp_path / "routes").write_text('[{"dst": "default", "dev": "wan", "table": "254", "protocol": "3", "flags": []}]')
    files = ["--ruleset", tmp_path / "ruleset", "--routes", f"4:{tmp_path / 'routes'}"]
    done = run("verify", *files, "--uplink", "wan=wan", "--mark", "1/1")
    assert (done.returncode, done.stdout[:7]) == (common.EXIT_REFUTED, b"REFUTED")
