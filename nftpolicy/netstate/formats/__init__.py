# SPDX-License-Identifier: BSD-2-Clause
"""Decoders and encoders of network states: nft text, libnftables JSON, `ip -j`, `ip -batch`. Pure.

Never here: a decision about a packet, or running a program.
"""
