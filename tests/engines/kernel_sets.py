"""Look-ups in the sets of a dump, as the kernel's set types do them."""

import sys

from .nft_dump import Attributes, RawSet, attribute_list, attributes, number

_INTERVAL = 4  # NFT_SET_INTERVAL
_INTERVAL_END, _CATCHALL = 1, 2  # NFT_SET_ELEM_*


def value_of(raw: bytes) -> bytes:
    """Return the bytes of a struct nft_data that holds a value."""
    return attributes(raw)[1]


def size_of(chosen: RawSet) -> int:
    """Return the highest number of elements."""
    description = attributes(chosen.header.get(9, b""))
    return number(description[1]) if 1 in description else sys.maxsize


def find_element(chosen: RawSet, key: bytes) -> Attributes | None:
    """Return the element that holds a key, else the catchall element, else None (nft_set_do_lookup)."""
    flags = number(chosen.header.get(3, b"\0"))
    plain = [each for each in chosen.elements if not number(each.get(3, b"\0")) & _CATCHALL]
    catchall = next((each for each in chosen.elements if number(each.get(3, b"\0")) & _CATCHALL), None)
    if flags & _INTERVAL and any(10 in each for each in plain):
        lengths = _field_lengths(chosen, len(key))
        found = next((each for each in plain if _is_inside(key, each, lengths)), None)
    elif flags & _INTERVAL:
        found = _last_start(plain, key)
    else:
        found = next((each for each in plain if value_of(each[1]) == key), None)
    return catchall if found is None else found


def _last_start(elements: list[Attributes], key: bytes) -> Attributes | None:
    """Return the interval that holds a key: the last boundary up to it, if that is a start (nft_rbtree_lookup)."""
    below = [each for each in elements if value_of(each[1]) <= key]
    if not below:
        return None
    # Where an interval ends and another begins, the start counts.
    last = max(below, key=lambda each: (value_of(each[1]), not number(each.get(3, b"\0")) & _INTERVAL_END))
    return None if number(last.get(3, b"\0")) & _INTERVAL_END else last


def _field_lengths(chosen: RawSet, total: int) -> list[int]:
    """Return the lengths of the fields of a concatenation, padded to words."""
    description = attributes(chosen.header.get(9, b""))
    lengths = [number(attributes(each)[1]) for _, each in attribute_list(description.get(2, b""))]
    return [-(-length // 4) * 4 for length in lengths] or [total]


def _is_inside(key: bytes, element: Attributes, lengths: list[int]) -> bool:
    """Return True if each field of a key is in the field's range (nft_pipapo_lookup)."""
    low = value_of(element[1])
    high = value_of(element[10]) if 10 in element else low
    start = 0
    for length in lengths:
        end = start + length
        if not low[start:end] <= key[start:end] <= high[start:end]:
            return False
        start = end
    return True
