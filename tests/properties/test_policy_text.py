"""A policy and its file say the same."""

from hypothesis import given
from hypothesis import strategies as st

from nftpolicy.policy import mark
from nftpolicy.policy.load import load
from tests import strategies


@given(strategies.policies())
def test_a_policy_comes_back_from_its_file(policy):
    assert load(strategies.to_toml(policy).encode())[0] == policy


@given(strategies.toml(), st.data())
def test_every_key_is_found_on_its_line(text, data):
    _, source = load(text.encode())
    table = ()
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("["):
            table = tuple(line.strip("[]").split("."))
            assert source.line(table) <= number  # a table below it may come first
        elif line:
            key = (*table, line.split(" ")[0])
            assert source.line(key) == number
            assert source.line((*key, 99)) == number


@given(strategies.marks(), st.integers(0, mark.FULL))
def test_marks_are_written_and_read_alike_and_put_on_with_foreign_bits_kept(one, fwmark):
    assert mark.parse(str(one)) == one
    worn = one.put_on(fwmark)
    assert one.worn_by(worn)
    assert worn & ~one.mask == fwmark & ~one.mask
    assert 0 <= worn <= mark.FULL


@given(strategies.marks(), strategies.marks(), st.integers(0, mark.FULL))
def test_marks_overlap_where_one_packet_can_wear_both(one, other, fwmark):
    both = one.put_on(other.put_on(fwmark))
    assert (one.worn_by(both) and other.worn_by(both)) == one.overlaps(other)
