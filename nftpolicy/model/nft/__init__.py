# SPDX-License-Identifier: BSD-2-Clause
"""An interpreter of nftables rules for one packet: hooks, chains, matches, statements, sets.

Belongs here: what `nft_do_chain` does with one packet. Never here: routing, or sets of packets.
"""
