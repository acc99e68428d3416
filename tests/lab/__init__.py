"""A network laboratory in unnamed namespaces, for the packet tests and for ``nftpolicy demo``.

It contains namespaces, a small topology with real daemons, senders of every kind of packet, and sniffers. It contains
no test cases, no pytest, and no part of nftpolicy itself; the lab must be able to contradict nftpolicy.

All traffic stays inside namespaces that the lab made, on documentation addresses (RFC 5737, 2001:db8::/32).
Root is needed. Nothing stays behind, not even after SIGKILL: see `netns`.

    with Lab(wan="main") as lab:
        lab.node.nft(rules)
        sents = leak_probes.send_all(lab, gid=777)
        leaked = [s for s in leak_probes.sightings(lab.wan, sents) if not s.probe.marked]

Modules, from the lowest up: `syscalls`, `netns_holder`, `forked_call`, `netns` (one namespace); `frames`, `sniffer`
(arrivals); `addresses`, `wiring`, `daemons`, `dns_message`, `ra_client`, `echo_server`, `topology` (the whole lab);
`packet_senders`, `leak_probes` (packets that try to leave); `inbound_clients` (connections from outside).
"""
