"""Benchmarks: each figure against its peer, measured in the same run, turn by turn.

    script/bench [start|apply|path|proof|window|exposure] [--rounds N] [--json]

They measure, and report the limits that hold. They contain no test that fails on a slow machine.
Root is needed, and all traffic stays in namespaces that the benchmarks make, as in `tests.lab`.

Modules, from the lowest up: `figures` (series, limits, the table), `sized_policies` (policies to apply), `large_states`
(states to prove), `bench_namespaces` (namespaces to send in), `namespace_worker` and `traffic_loads` (functions inside
them), then the benchmarks `startup_bench`, `apply_bench`, `packet_path_bench`, `proof_bench`, `transition_bench` and
`exposure_bench`.
"""
