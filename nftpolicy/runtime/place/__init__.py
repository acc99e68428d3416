# SPDX-License-Identifier: BSD-2-Clause
"""Files that nftpolicy writes for others: units, drop-ins, the guard at boot, and how they are put in place."""
