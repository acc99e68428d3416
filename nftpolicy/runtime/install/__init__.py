# SPDX-License-Identifier: BSD-2-Clause
"""Installation: which files go where, how they are written, and which commands enable them.

The text of units, drop-ins and init scripts comes from nftpolicy/integration.
"""
