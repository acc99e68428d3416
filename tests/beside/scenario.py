"""Words of the table of scenarios."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .outside import Outside


@dataclass(frozen=True)
class Check:
    """Part of the job that must work: a shell command, and a regular expression that its output must match.

    It runs in the machine, or with the programs of the machine that runs the tests in the LAN's host (`lan`) or at the
    uplink's far end (`internet`). `guarded` is True if it works only while the policy is in force, False if only without
    one.
    """

    command: str
    expects: str
    lan: bool = False
    internet: bool = False
    guarded: bool | None = None


@dataclass(frozen=True)
class Scenario:
    """Program beside nftpolicy. Commands are of the shell of the machine, as root."""

    name: str
    packages: tuple[str, ...]  # of Debian; the versions of all are in the report
    policy: str  # text of the policy file
    start: str
    reload: str
    restart: str
    stop: str
    works: tuple[Check, ...]
    released: str = ""  # what its user has to run after `release`, before the job works again
    files: Mapping[str, str] = field(default_factory=dict)  # path without the first "/" -> text
    serve: Callable[[Outside], Mapping[str, str]] | None = None  # starts servers in the outside; returns more files
    prepare: str = ""  # shell script in the machine's root directory, from outside, before it boots
    static: bool = True  # the uplink has static addresses, as below; otherwise the program configures it
    # Senders of container.py that `start` starts and that may not use the uplink: name -> the port to which they send.
    containers: Mapping[str, int] = field(default_factory=dict)
    # Lines of the state (rules, routes, nft, sysctls) that may differ after `release`: regular expression -> what differs, and why.
    keeps: Mapping[str, str] = field(default_factory=dict)
    # Events of `watch` that are right here, besides those that each scenario has: event -> reason.
    events: Mapping[str, str] = field(default_factory=dict)
