"""The beginning of policies of tests: one uplink, and what is inside."""

WAN = b"""
name = "p"
inside = ["bat0"]
[uplink.wan]
devices = ["eth0"]
mark = "0x1/0x3"
table = 7
"""
