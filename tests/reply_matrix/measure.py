"""Measurement of all cells of one network."""

import time
from collections.abc import Callable, Iterable

from nftpolicy.kernel.linux import Linux
from nftpolicy.netstate.state import NetState
from tests.lab.conntrack_flush import flush_flows
from tests.lab.frames import Frame
from tests.lab.limits import brief

from . import cells
from .cells import Cell, Network, Outcome
from .exchanges import Echo, Exchange, exchanges
from .prediction import Predictor
from .reply_network import ReplyNetwork, has_protocol

_QUIET = 0.05  # seconds without a frame until no other is expected


def all_cells(
    families: Iterable[int] = cells.FAMILIES,
    protocols: Iterable[str] = cells.PROTOCOLS,
    clients: Iterable[str] = cells.CLIENTS,
    moments: Iterable[str] = cells.MOMENTS,
) -> list[Cell]:
    """Return the cells of one network, without protocols that the kernel does not have."""
    protocols = [protocol for protocol in protocols if has_protocol(protocol)]
    return [
        Cell(family, protocol, client, moment)
        for family in families
        for protocol in protocols
        for client in clients
        for moment in moments
        if (protocol, moment) != (cells.PING, cells.SERVER_FIRST)  # the kernel never speaks first
    ]


def measure(network: Network, wanted: Iterable[Cell]) -> dict[Cell, Outcome]:
    """Return the outcome of each cell in a new network."""
    with ReplyNetwork(network) as made, exchanges(made, wanted) as talks:
        predicted = _talk(made, talks)
        frames = _collect(made)
        return {talk.cell: _outcome(talk, predicted[talk.cell], frames) for talk in talks}


def _talk(network: ReplyNetwork, talks: list[Exchange]) -> dict[Cell, str]:
    """Send all requests and replies; return the outcomes that the model predicts for the last reply of each cell."""
    predicted: dict[Cell, str] = {}

    def at(moment: str) -> list[Exchange]:
        return [talk for talk in talks if talk.cell.moment == moment]

    def predict(chosen: list[Exchange], is_reply: bool) -> None:
        predictor = Predictor(_state(network))
        for talk in chosen:
            predicted[talk.cell] = predictor.predict(talk, is_reply or isinstance(talk, Echo))

    def speak(chosen: list[Exchange], *acts: Callable[[Exchange], None]) -> None:
        for talk in chosen:
            for act in acts:
                act(talk)

    def ask(talk: Exchange) -> None:
        talk.ask()

    def reply(talk: Exchange) -> None:
        talk.reply()

    server_first = [talk for talk in at(cells.SERVER_FIRST) if talk.cell.protocol == cells.TCP]
    predict(server_first, True)
    speak(server_first, reply)
    others = [talk for talk in talks if talk not in server_first]
    speak(others, ask)
    predict(at(cells.FIRST), True)
    speak(others, reply)
    if idle := at(cells.IDLE):
        with network.short_flows() as seconds:  # only here: elsewhere a loaded machine would be too slow for them
            speak(idle, ask, reply)
            time.sleep(seconds)
        predict(idle, False)
        speak(idle, reply)
    after_flush = [talk for talk in others if talk.cell.moment in (cells.FLUSHED, cells.SERVER_FIRST)]
    if after_flush:
        speak(after_flush, ask, reply)
        if network.network.has_policy:
            flush_flows(network.node)
        predict(at(cells.FLUSHED), False)
        speak(after_flush, reply)
        asking_again = [talk for talk in after_flush if talk.cell.moment == cells.SERVER_FIRST]
        speak(asking_again, ask)
        predict(asking_again, True)
        speak(asking_again, reply)
    return predicted


def _state(network: ReplyNetwork) -> NetState:
    state: NetState = network.node.call(_read_state)
    return state


def _read_state() -> NetState:
    return Linux().read_all()


def _collect(network: ReplyNetwork) -> dict[str, list[Frame]]:
    """Return the frames of each device, when no other comes."""
    count = -1
    while count != (count := sum(len(sniffer.frames()) for sniffer in network.sniffers.values())):
        time.sleep(brief(_QUIET))
    assert not any(sniffer.dropped for sniffer in network.sniffers.values()), "inconclusive: frames were lost"
    return {device: sniffer.frames() for device, sniffer in network.sniffers.items()}


def _outcome(talk: Exchange, predicted: str, frames: dict[str, list[Frame]]) -> Outcome:
    seen, strays = cells.NOWHERE, []
    for device, captured in frames.items():
        for frame in filter(talk.owns, captured):
            if (device, frame.saddr) != (talk.network.asked, talk.address):
                strays.append(f"{device} from {frame.saddr}")
            elif talk.tokens and talk.tokens[-1] in frame.payload:
                seen = cells.ANSWERED
    return Outcome(cells.STRAY if strays else seen, predicted, tuple(dict.fromkeys(strays)))
