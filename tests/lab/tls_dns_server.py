"""DNS server over TLS (RFC 7858) that has one answer for every query, and the certificates that it needs."""

import contextlib
import socket
import ssl
import struct
import subprocess
import threading
from pathlib import Path

from .slow_dns_server import reply

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]


def make_certificate(directory: Path, name: str) -> None:
    """Make ca.pem, and server.pem and server.key that it signs for the name."""
    openssl = ["openssl", "req", "-x509", *_KEY]
    ca = [*openssl, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem"]
    server = [*openssl, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-CA", "ca.pem", "-CAkey",
              "ca.key", "-keyout", "server.key", "-out", "server.pem"]  # fmt: skip
    for argv in (ca, server):
        subprocess.run(argv, cwd=directory, check=True, capture_output=True)


def serve(address: str, directory: Path, answer: str) -> None:
    """Answer each query at port 853 with that IPv4 address, until the process ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    with socket.create_server((address, 853)) as listener:
        while True:
            threading.Thread(target=_answer, args=(context, listener.accept()[0], answer), daemon=True).start()


def _answer(context: ssl.SSLContext, plain: socket.socket, answer: str) -> None:
    with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as channel:
        stream = channel.makefile("rwb")
        while length := stream.read(2):
            message = reply(stream.read(struct.unpack("!H", length)[0]), answer)
            stream.write(struct.pack("!H", len(message)) + message)
            stream.flush()
