"""The beginning of policies of tests: one uplink, and what is inside."""

WAN = b"""
name = "p"
inside = ["bat0"]
[uplink.wan]
devices = ["eth0"]
mark = "0x1/0x3"
table = 7
"""

# A whole policy: an uplink of two devices, and a service.
TWO_DEVICES = b"""name = "p"
inside = ["lan"]
[uplink.wan]
devices = ["eth0", "wlan0"]
mark = "0x1/0xff"
table = 7
[service.vpn]
uplink = "wan"
group = 800
"""
