"""Mutants of the product's own code: which of them the tests kill that need no kernel. See script/mutate."""
