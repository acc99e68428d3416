# SPDX-License-Identifier: BSD-2-Clause
"""Decoder of the ruleset that the kernel executes: netlink messages of nf_tables to nft values.

nft's listing leaves out tests that nft takes for implied. Here every test of a rule stays, in the
order of the kernel. A header field gets nft's name only where earlier tests of the rule establish
its protocol; else it is a RawPayload. Pure. Never here: a netlink socket.
"""
