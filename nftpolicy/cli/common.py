# SPDX-License-Identifier: BSD-2-Clause
"""Helpers of several commands: exit codes, loading a policy, errors of a change as messages."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..exceptions import NftpolicyError
from ..phrases import quantity
from ..policy.errors import PolicyError, PolicyText, did_you_mean, format_path
from ..policy.load import MAX_ERRORS, load, numeric_account
from ..policy.objects import Account, Policy
from .plain_output import plain_line

if TYPE_CHECKING:
    from ..kernel.errors import StepRefused
    from ..kernel.linux import Linux
    from ..planner.plan import Plan
    from ..policy.toml_positions import KeyPath
    from ..runtime.apply.executor import PlannedChange
    from ..runtime.apply.state_dir import StateDir

# The exit codes of every command, documented in nftpolicy(1).
EXIT_REFUTED, EXIT_BAD_INPUT, EXIT_UNKNOWN, EXIT_UNAVAILABLE, EXIT_FAILED = 1, 2, 3, 4, 5
EXIT_DEFECT = 70  # sysexits.h: EX_SOFTWARE
EXIT_OUTPUT_CLOSED = 128 + 13  # as if SIGPIPE had ended the process

POLICY_DIRECTORY, INSTALLED_NAME = (
    "/etc/nftpolicy",
    "policy.toml",
)  # `install` writes the policy by that name
_POLICY_MODE = 0o644  # of a draft, whatever the umask
_LARGEST_INPUT = 256 << 20  # bytes of a file; one may be a device without an end
_MOST_DIFFERENCES = 20  # lines of a message
_MOST_ERRORS = 20  # of a policy


class Failure(NftpolicyError):
    """Failure of a command: the message for standard error, and the exit code."""

    def __init__(self, message: str, status: int = EXIT_FAILED) -> None:
        self.status = status
        super().__init__(message)


def root_needed(capability: str = "") -> Failure:
    """Return the Failure of a command that only root can run."""
    return Failure(f"this needs root{capability and f' ({capability})'}: try again with sudo", EXIT_UNAVAILABLE)


def state_failure(error: OSError) -> Failure:
    """Return the Failure of a command that cannot read or write the state directory."""
    if error.errno == errno.EACCES:
        return root_needed()
    return Failure(f"{error.filename or 'the state directory'}: {error.strerror}")


# --- policies -------------------------------------------------------------------------------


def policy_file(file: Path | None, root: Path = Path("/")) -> Path:
    """Return `file`, else the only policy in /etc/nftpolicy, else policy.toml there.

    `root` is the root directory of the target system.

    Raises:
        Failure: no file is given, and /etc/nftpolicy has none, or several without a policy.toml.
    """
    if file is not None:
        return file
    files = installed_policies(root)
    if len(files) == 1:
        return files[0]
    if not files:
        raise Failure(
            f"no policy file is given, and {POLICY_DIRECTORY} has none: write {POLICY_DIRECTORY}/{INSTALLED_NAME}",
            EXIT_BAD_INPUT,
        )
    for path in files:
        if path.name == INSTALLED_NAME:
            return path
    names = ", ".join(path.name for path in files)
    raise Failure(
        f"{POLICY_DIRECTORY} has several policies ({names}): name one on the command line",
        EXIT_BAD_INPUT,
    )


def installed_policies(root: Path = Path("/")) -> list[Path]:
    """Return the policy files in /etc/nftpolicy below `root`."""
    return sorted((root / POLICY_DIRECTORY.lstrip("/")).glob("*.toml"))


def read_policy(file: Path | None) -> tuple[Policy, PolicyText]:
    """Return the policy in the file that `policy_file` chooses; "-" is standard input.

    Raises:
        Failure: the file cannot be read, or is not a valid policy.
    """
    return parse_policy(*read_input(policy_file(file)))


def read_input(file: Path) -> tuple[bytes, str]:
    """Return the content of a file and its name for messages; "-" is standard input.

    Raises:
        Failure: the file cannot be read.
    """
    is_stdin = str(file) == "-"
    name = "standard input" if is_stdin else plain_line(str(file))
    try:
        with nullcontext(sys.stdin.buffer) if is_stdin else file.open("rb") as opened:
            content = opened.read(_LARGEST_INPUT + 1)
    except OSError as error:
        raise Failure(f"{name}: cannot be read: {error.strerror}", EXIT_BAD_INPUT) from None
    if len(content) > _LARGEST_INPUT:
        raise Failure(f"{name}: cannot be read: larger than {_LARGEST_INPUT >> 20} MiB", EXIT_BAD_INPUT)
    return content, name


def write_output(file: Path, text: str, mode: int) -> None:
    """Write text to a file that the user named, or to standard output for "-".

    Raises:
        Failure: the file cannot be written.
    """
    if str(file) == "-":
        print(text, end="")
        return
    from ..runtime.atomic_file import write_named_file

    try:
        write_named_file(file, text.encode(), mode)
    except OSError as error:
        raise Failure(f"{plain_line(str(file))}: cannot be written: {error.strerror}") from None


def write_policy(file: Path, text: bytes, force: bool) -> None:
    """Write a draft of a policy; a file that differs is replaced with `force` alone.

    Raises:
        Failure: the file differs, or cannot be written.
    """
    from ..runtime.atomic_file import write_named_file
    from ..runtime.regular_file import read_regular

    name = plain_line(str(file))
    try:
        if not force:
            with suppress(FileNotFoundError):
                if read_regular(file, len(text) + 1) == text:
                    return
                raise Failure(f"{name}: the file exists and differs; --force replaces it")
        write_named_file(file, text, _POLICY_MODE)
    except OSError as error:
        raise Failure(f"{name}: cannot be written: {error.strerror}") from None


def parse_policy(data: bytes, name: str) -> tuple[Policy, PolicyText]:
    """Return the policy in `data`; `name` is the file name for messages.

    Raises:
        Failure: `data` is not a valid policy.
    """
    try:
        return load(data, name, resolve_account)
    except PolicyError as error:
        raise Failure(_describe_errors(error), EXIT_BAD_INPUT) from None


def _describe_errors(first: PolicyError) -> str:
    """Return all errors of a policy, each with its source line."""
    errors = (first, *first.more_errors)
    texts = [f"{error}\n{error.excerpt}".rstrip() for error in errors[:_MOST_ERRORS]]
    if len(errors) > 1:
        texts.append(f"{first.source}: {len(errors)} errors{' or more' if len(errors) >= MAX_ERRORS else ''}")
    return "\nnftpolicy: ".join(texts)


def applied_policy(state_dir: StateDir | None = None) -> tuple[Policy, PolicyText] | None:
    """Return the policy that was applied last in this network namespace; None if there was none.

    Raises:
        Failure: it cannot be read, or it is no longer valid, for example since an account was removed.
    """
    if state_dir is None:
        from ..runtime.apply.state_dir import current_state_dir

        state_dir = current_state_dir()
    try:
        last = state_dir.policy()
    except OSError as error:
        raise state_failure(error) from None
    return parse_policy(last[1], last[0]) if last is not None else None


def last_policy(usage: str, state_dir: StateDir | None = None) -> tuple[Policy, PolicyText]:
    """Return the policy that was applied last; `usage` is the command that names a policy instead.

    Raises:
        Failure: no policy was applied in this network namespace, or it is no longer valid.
    """
    policy = applied_policy(state_dir)
    if policy is None:
        raise Failure(f"no policy was applied here; name one: {usage}", EXIT_BAD_INPUT)
    return policy


def resolve_account(kind: str, item: object) -> Account:
    """Return a user or group of this machine, by name or number.

    Raises:
        ValueError: it does not exist; the message names the correction.
    """
    if not isinstance(item, str):
        return numeric_account(kind, item)
    if item.isascii() and item.isdigit():
        return numeric_account(kind, int(item))
    from ..kernel import accounts

    number = accounts.account_number(kind, item) if item.isprintable() else None  # pwd refuses NUL
    if number is None:
        add = "groupadd" if kind == "group" else "useradd"
        raise ValueError(
            f"there is no {kind} {item!r} on this machine{did_you_mean(item, accounts.account_names(kind))}; "
            f"create it with {add} --system, or write a number"
        )
    return Account(item, number)


def require_known(kind: str, name: str | None, known: Iterable[str], option: str = "", owner: str = "") -> None:
    """Check that the policy has an uplink or service of this name.

    `option` is a prefix of the message, `owner` the policy's name in it.

    Raises:
        Failure: the policy has none of that name.
    """
    names = list(known)
    if name is not None and name not in names:
        subject = f"{owner} has no {kind}" if owner else f"there is no {kind}"
        hint = f"{did_you_mean(name, names)}; known are {', '.join(names) or 'none'}"
        raise Failure(f"{option}{subject} {name[:60]!r}{hint}", EXIT_BAD_INPUT)


# --- the kernel -----------------------------------------------------------------------------


def this_kernel() -> Linux:
    """Return the kernel of this machine.

    Raises:
        Failure: it cannot be used: not root, or a library is missing.
    """
    from ..kernel.errors import Unavailable
    from ..kernel.linux import open_kernel

    try:
        return open_kernel()
    except Unavailable as error:
        raise Failure(str(error), EXIT_UNAVAILABLE) from None


def warn(message: str) -> None:
    """Print one line on standard error."""
    print(f"nftpolicy: {message}", file=sys.stderr, flush=True)


def describe_result(change: PlannedChange, verb: str, unchanged: str) -> str:
    """Return "VERB in N steps", or `unchanged` if the plan has no steps."""
    steps = len(change.plan.steps)
    return f"{verb} in {quantity(steps, 'step')}" if steps else unchanged


@contextmanager
def change_errors_as_failure(source: PolicyText | None) -> Iterator[None]:
    """Turn the errors of a change of the kernel into Failures that name the policy's line."""
    from ..kernel.errors import StepRefused
    from ..runtime.apply.errors import NoSafeOrder, PolicyNotProved
    from ..runtime.apply.executor import ReadBackMismatch, RollbackFailed
    from ..runtime.apply.recover import RecoveryFailed
    from ..runtime.apply.state_dir import Locked

    try:
        yield
    except (PolicyNotProved, NoSafeOrder) as error:
        from .findings_text import refusal_lines

        lines, unknown = refusal_lines(error, source)
        status = EXIT_UNKNOWN if unknown else EXIT_REFUTED
        raise Failure("\n".join([*lines, "nftpolicy: nothing was changed"]), status) from None
    except RollbackFailed as error:
        raise Failure(f"{error}; type 'nftpolicy recover'. Differences:\n  {_differences(error.missing)}") from None
    except StepRefused as error:
        raise Failure(f"{describe_refusal(error, source)}\nnftpolicy: the kernel's state is as it was before") from None
    except ReadBackMismatch as error:
        raise Failure(f"{error}; the change was undone. Differences:\n  {_differences(error.missing)}") from None
    except (Locked, RecoveryFailed) as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(f"{error.filename or 'the state directory'}: {error.strerror}") from None


def _differences(plan: Plan) -> str:
    from ..runtime.apply.step_text import plan_lines

    return "\n  ".join(plan_lines(plan)[:_MOST_DIFFERENCES])


def describe_refusal(error: StepRefused, source: PolicyText | None) -> str:
    """Return which object of which policy line the kernel refused, and why."""
    from ..netstate.operations import NftTransaction
    from ..planner.plan import Plan
    from ..runtime.apply.step_text import describe_object, plan_lines

    item = error.object or _object_of(error)
    text = describe_object(item) if item is not None else ""
    if not text and not isinstance(error.step, NftTransaction):
        text = plan_lines(Plan((error.step,)))[0]
    origin = _origin_of(item)
    location = ""
    if source is not None:
        line = source.line_of(origin) if origin else None
        file = source.name if line is None else f"{source.name}:{line}"
        location = f"{file}: {format_path(origin)}: " if origin else f"{file}: "
    return f"{location}the kernel refused {text or 'the ruleset'}: {error.reason}"


def _object_of(error: StepRefused) -> object:
    """Return the ip rule, route or sysctl of the refused step; None for an nft transaction."""
    from ..netstate.operations import IpRuleChange, RouteChange, RouteReplacement, SysctlChange

    match error.step:
        case IpRuleChange(rule=item):
            return item
        case RouteChange(route=item) | RouteReplacement(route=item):
            return item
        case SysctlChange(new=item):
            return item
    return None


def _origin_of(item: object) -> KeyPath:
    """Return the policy key of an object, or of the set of elements; () if it has none."""
    for owner in (item, getattr(item, "of", None)):
        origin = getattr(owner, "origin", None)
        if origin:
            return tuple(origin)
    return ()
