"""Three ways to answer the prover's questions, so that each can be held against the others.

What belongs here: second opinions. What never does: code that the package uses.

Modules, from the ground up: `universe` (packets, few and enough), `rulesets` (rulesets by chance), `brute` (every packet
by the walk), `symbols` and `smt` (z3, with a reading of nft of its own), `toys` (machines by chance), `compare`.
"""
