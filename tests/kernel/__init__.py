"""The facts about the kernel and nft that the design rests on, one test each, named by the id of the fact.

A red test here is no bug of ours: this kernel differs from the one that the design was made on, and the message of the
assertion says what the design would have to change.
"""
