"""Second opinions on the prover: three ways to answer its questions, compared with each other.

Code that the package uses does not belong here.

Modules: `equivalence_classes` (packets, few and sufficient), `ruleset_strategies` (generated rulesets),
`enumerate_packets` (the trace of every packet), `z3_fields` and `z3_chains` (z3, with an independent reading of nft),
`toy_states` (generated hosts), `compare_engines`.

And an interpreter of the kernel's own program, as the netlink dump gives it: `nft_dump`, `kernel_program` and
`kernel_sets` share nothing with the product; `program_packets` draws packets for a program, `compare_program` holds the
model of the rules against it.
"""
