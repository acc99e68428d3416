"""Readers of what others write, and what judges it, under arbitrary input: nothing but their own errors may come out.

`targets.py` holds them. tests/properties/test_fuzz.py runs a few examples of each, script/fuzz as
many as there is time for.
"""
