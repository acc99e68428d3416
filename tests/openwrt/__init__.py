"""A router without OpenWrt: the compiled tree, run by busybox with the real nft and ip.

What is fake here: uci, ubus, jsonfilter, and what fw4 and netifd do, as it was seen on real ones
(tests/fixtures, netifd.py, fw4.py).
"""
