"""Matrix of replies: every kind of server, asked by an uplink, in every kind of network, at every moment.

Each cell sends real packets in namespaces, with a policy and without one, and traces the same reply in the model over
the state that the kernel has then. `script/reply-matrix` prints the matrix; `--write FILE` writes it as a page.

Modules, from the lowest up: `cells` (axes, outcomes), `reply_network` (namespaces), `exchanges` (servers and clients),
`prediction` (the model), `measure` (one network), `page` (text).
"""
