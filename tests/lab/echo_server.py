"""Echo service of the server, so that a whole exchange can be seen: UDP and TCP, both families."""

import select
import socket


def serve(port: int) -> None:
    """Echo without end: each datagram, and the first 4096 bytes of each connection."""
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    datagrams.bind(("::", port))
    streams = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        for ready in select.select([datagrams, streams], [], [])[0]:
            try:
                if ready is datagrams:
                    data, ((level, kind, info), *_), _, peer = datagrams.recvmsg(4096, 256)
                    asked = info[:16] + bytes(4)  # answer from the address that was asked, by any device
                    datagrams.sendmsg([data], [(level, kind, asked)], 0, peer)
                else:
                    connection, _ = streams.accept()
                    with connection:
                        connection.settimeout(1)
                        connection.sendall(connection.recv(4096))
            except OSError:  # a peer that went away must not end the service
                continue
