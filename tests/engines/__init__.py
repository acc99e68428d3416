"""Three ways to answer the prover's questions, so that each can be held against the others.

`rulesets` makes small rulesets, states and universes of packets by chance. `brute` asks every packet of a
universe, by the walk. `smt` asks z3, with a reading of nft's values of its own. What belongs here: second
opinions. What never does: code that the package uses.
"""
