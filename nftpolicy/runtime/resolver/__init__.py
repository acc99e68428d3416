# SPDX-License-Identifier: BSD-2-Clause
"""DNS resolver of an uplink: dnsmasq, discovery of its servers, and leaks of them into the host's own resolver."""
