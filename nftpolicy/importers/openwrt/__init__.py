# SPDX-License-Identifier: BSD-2-Clause
"""UCI of an OpenWrt router: the NetState that netifd and fw4 make of it, and a draft policy. Pure."""
