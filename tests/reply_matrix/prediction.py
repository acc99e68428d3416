"""Outcome of a reply in the model, over a state of the kernel."""

from attrs import evolve

from nftpolicy.model.packet import FORWARD, KERNEL, SOCKET, TCP, CtInfo, Packet, parse_address
from nftpolicy.model.trace import LEAVES, UNKNOWN, Model, Trace
from nftpolicy.netstate.nft import Rule, SetUpdate, Table
from nftpolicy.netstate.state import NetState

from . import cells
from .exchanges import ECHO, NUMBER, Exchange
from .reply_network import PORTS

_ECHO_REPLY = {4: (("icmp", "type"), 0), 6: (("icmpv6", "type"), 129)}
_PUSH = {("tcp", "flags"): 0x18}
_HAS_OWN_SOURCE = (cells.TCP, cells.SCTP, cells.UDP_BOUND, cells.UDP_PKTINFO, cells.PING)


class Predictor:
    """The model of one state."""

    def __init__(self, state: NetState) -> None:
        self._model = Model(evolve(state, tables=tuple(map(_without_updates, state.tables))))
        self._sysctls = {sysctl.path: sysctl.value for sysctl in state.sysctls}

    def predict(self, exchange: Exchange, is_reply: bool) -> str:
        """Return the outcome of the next reply; `is_reply`: it belongs to the flow of its request."""
        request = _request(exchange)
        arrival = self._model.trace(request)
        if arrival.outcome != "delivered" or not arrival.unanimous:
            return cells.UNKNOWN if arrival.outcome == UNKNOWN else cells.NOWHERE
        packet = _reply(exchange, request, self._inherited_mark(exchange, arrival))
        if is_reply:
            # From another address than the one that was asked, it begins a flow of its own.
            source = self._model.trace(packet).source if packet.source is None else packet.source
            if source == request.destination:
                packet = evolve(packet, flow=CtInfo("established", "reply", arrival.ct_mark))
        possible = self._model.trace(packet).possible_traces
        outcomes = {_outcome(exchange, trace) for trace in possible or ()}
        return outcomes.pop() if len(outcomes) == 1 else cells.UNKNOWN

    def _inherited_mark(self, exchange: Exchange, arrival: Trace) -> int:
        """Return the mark of the socket, or of the packet that the kernel answers."""
        name = {
            cells.TCP: "net/ipv4/tcp_fwmark_accept",
            cells.PING: f"net/ipv{exchange.cell.family}/fwmark_reflect",
        }.get(exchange.cell.protocol)
        return arrival.mark if name is not None and self._sysctls.get(name) == "1" else 0


def _without_updates(table: Table) -> Table:
    """Return the table with the elements that its sets have now: what packets add later is another question."""

    def constant(rule: Rule) -> Rule:
        return evolve(rule, statements=tuple(each for each in rule.statements if not isinstance(each, SetUpdate)))

    chains = tuple(evolve(chain, rules=tuple(map(constant, chain.rules))) for chain in table.chains)
    sets = tuple(evolve(each, flags=each.flags - {"dynamic", "timeout"}, timeout=None) for each in table.sets)
    return evolve(table, chains=chains, sets=sets)


def _request(exchange: Exchange) -> Packet:
    family = exchange.cell.family
    is_echo = exchange.cell.protocol == cells.PING
    return Packet(
        family,
        parse_address(exchange.address),
        parse_address(exchange.peer),
        ECHO[family][0] if is_echo else NUMBER[exchange.cell.protocol],
        sport=0 if is_echo else exchange.client_port,
        dport=0 if is_echo else PORTS[exchange.cell.protocol],
        origin=FORWARD,
        iif=exchange.network.asked,
    )


def _reply(exchange: Exchange, request: Packet, mark: int) -> Packet:
    """Return the reply as the first packet of a flow of this machine."""
    is_echo = exchange.cell.protocol == cells.PING
    return evolve(
        request,
        source=request.destination if exchange.cell.protocol in _HAS_OWN_SOURCE else None,
        destination=request.source,
        sport=request.dport,
        dport=request.sport,
        origin=KERNEL if is_echo else SOCKET,
        iif=None,
        mark=mark,
        fields=dict([_ECHO_REPLY[request.family]]) if is_echo else _PUSH if request.protocol == TCP else {},
    )


def _outcome(exchange: Exchange, trace: Trace) -> str:
    if trace.outcome == UNKNOWN or (trace.outcome == LEAVES and trace.source is None):
        return cells.UNKNOWN
    if trace.outcome != LEAVES:
        return cells.NOWHERE
    is_right = (trace.device, trace.source) == (exchange.network.asked, parse_address(exchange.address))
    return cells.ANSWERED if is_right else cells.STRAY
