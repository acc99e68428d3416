# SPDX-License-Identifier: BSD-2-Clause
"""DNS resolver of an uplink: dnsmasq or unbound, server discovery, leaks into the host's own resolver."""
