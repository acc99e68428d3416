# SPDX-License-Identifier: BSD-2-Clause
"""Decoder of `nft --debug=netlink -y -a list ruleset`: libnftnl's text of the kernel's program, with nft's listing.

The text is encoded as the netlink messages that it was printed from, and read as those are. What the text does
not show is taken from the listing behind it, or unsupported, or an assumption of ASSUMPTIONS. Pure.
"""
