"""Fuzz targets: decoders of foreign input and the prover; only their documented errors are allowed.

`targets.py` lists them. tests/properties/test_fuzz_targets.py runs a few examples of each,
script/fuzz as many as the given time allows.
"""
