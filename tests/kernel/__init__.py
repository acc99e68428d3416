"""Facts about the kernel and nft on which the design rests, one test each, named by the id of the fact.

A failing test here is not a defect of nftpolicy: this kernel differs from the kernel for which the design was made, and
the message of the assertion says which part of the design has to change.
"""
