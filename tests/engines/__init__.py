"""Second opinions on the prover: three ways to answer its questions, compared with each other.

Code that the package uses does not belong here.

Modules: `equivalence_classes` (packets, few and sufficient), `ruleset_strategies` (generated rulesets),
`enumerate_packets` (the trace of every packet), `z3_fields` and `z3_chains` (z3, with an independent reading of nft),
`toy_states` (generated hosts), `compare_engines`.
"""
