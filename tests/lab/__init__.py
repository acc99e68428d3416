"""A network laboratory in unnamed namespaces, for the packet tests and for ``nftpolicy demo``.

What belongs here: namespaces, a small topology with real daemons, senders of every kind of packet, and sniffers.
What never does: test cases, pytest, and anything of nftpolicy itself; the lab must be able to contradict it.

All traffic stays inside namespaces that the lab made, on documentation addresses (RFC 5737, 2001:db8::/32).
Root is needed. Nothing stays behind, not even after SIGKILL: see `netns`.

    with Lab(wan="main") as lab:
        lab.node.nft(rules)
        sents = probes.send_all(lab, gid=777)
        leaked = [s for s in probes.sightings(lab.wan, sents) if not s.probe.marked]

Modules, from the ground up: `syscalls`, `holder`, `child`, `netns` (one namespace); `frames`, `sniffer` (what arrives);
`addresses`, `wiring`, `daemons`, `dns`, `ra`, `echo`, `topology` (the whole lab); `senders`, `probes` (what tries to
leave); `inbound` (what knocks).
"""
