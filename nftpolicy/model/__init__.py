# SPDX-License-Identifier: BSD-2-Clause
"""Linux's decisions on a netstate: the trace of one packet, and the regions of all packets. Pure.

Belongs here: what the kernel does with rules, routes, hooks and expressions. Does not belong here:
specifications (proof/), the meaning of a policy, and any query to a kernel.

`fib` simulates policy routing, `nft` interprets nftables rules for one packet, `symbolic` evaluates
them for regions of packets. `trace` combines fib and nft into the path of one packet.
"""
