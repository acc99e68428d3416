"""Axes of the matrix, and the outcome of a cell. Pure."""

from dataclasses import dataclass

FAMILIES = (4, 6)
TCP, UDP_WILDCARD, UDP_BOUND, UDP_PKTINFO, PING, SCTP = (
    "TCP",
    "UDP wildcard",
    "UDP bound",
    "UDP PKTINFO",
    "ping",
    "SCTP",
)
PROTOCOLS = (TCP, UDP_WILDCARD, UDP_BOUND, UDP_PKTINFO, PING, SCTP)
NEIGHBOUR, BEYOND = "neighbour", "beyond the gateway"
CLIENTS = (NEIGHBOUR, BEYOND)

# Default route of table main, and how many uplinks there are; the client asks by the last one.
INSIDE, NONE, BY_UPLINK = "inside", "none", "by an uplink"
DEFAULTS = (INSIDE, NONE, BY_UPLINK)
ONE, TWO, SAME_ADDRESS = "one uplink", "two uplinks", "the same address on two uplinks"
UPLINKS = (ONE, TWO, SAME_ADDRESS)

# The first reply; one after the conntrack entry has ended, and after all are deleted, without a new request;
# a TCP server that sends first, and the reply to a new request after a UDP server has sent without one.
FIRST, IDLE, FLUSHED, SERVER_FIRST = "first packet", "after idle", "after a flush", "server first"
MOMENTS = (FIRST, IDLE, FLUSHED, SERVER_FIRST)

ANSWERED, NOWHERE, STRAY, UNKNOWN = "answered", "nowhere", "stray", "unknown"
LETTERS = {ANSWERED: "a", NOWHERE: "-", STRAY: "S"}


@dataclass(frozen=True)
class Network:
    """A lab: its uplinks, the default route of table main, and if a policy is in force.

    `first_is_dead`: the table of the first uplink has none of the routes that a network gives.
    """

    uplinks: str
    default: str
    has_policy: bool
    first_is_dead: bool = False


@dataclass(frozen=True)
class Cell:
    """One exchange of a client by an uplink with a server of this machine."""

    family: int
    protocol: str
    client: str
    moment: str


@dataclass(frozen=True)
class Outcome:
    """Where replies went, and where the model says that they go. `places` has the stray frames, each as text."""

    seen: str
    predicted: str
    places: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        return self.seen == self.predicted
