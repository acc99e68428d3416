"""Router without OpenWrt: the compiled tree, run by busybox with the real nft and ip.

Stand-ins: uci, ubus and jsonfilter (fake_tools.py), fw4 and netifd, after the behaviour of real ones (tests/fixtures,
fw4_stand_in.py, netifd_stand_in.py).
"""
