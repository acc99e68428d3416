"""Benchmarks: each figure against its peer, measured in the same run, turn by turn.

    script/bench [start|apply|path|proof] [--rounds N] [--json]

What belongs here: measuring, and saying which limits hold. What never does: a test that fails for a slow machine.
Root is needed, and all traffic stays in namespaces that the benchmarks make, as in `tests.lab`.

Modules, from the ground up: `figures` (series, limits, the table), `policies` (what is applied), `large` (what is
proved), `worlds` (namespaces to send in), `loads` (what runs inside them), then `start`, `apply`, `path` and `proof`.
"""
