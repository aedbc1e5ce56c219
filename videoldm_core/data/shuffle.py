"""A shuffle that is computed place by place: no table of it exists, however much is shuffled.

A count n is laid out as the smallest grid of a x b cells, a = ceil(sqrt(n)), and a Feistel network
moves cells over it: each round shifts one coordinate by a keyed function of the other, which can be
undone. Who lands beyond n walks on until inside. All in uint64, so equal everywhere.
"""

import numpy as np

ROUNDS = 12  # with fewer, some orders of five or six things come more often than others
ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: keeps the rounds of one key apart


def shuffled(places: np.ndarray, counts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """What stands at some places of shuffles of range(count).

    Args:
        places: uint64 (k), each below its count.
        counts: uint64 (k), how many each shuffle has.
        keys: uint64 (k); equal keys and counts are the same shuffle (`mixed` makes keys).

    Returns:
        uint64 (k).
    """
    landed = _moved(places, counts, keys)
    while (outside := np.flatnonzero(landed >= counts)).size:
        landed[outside] = _moved(landed[outside], counts[outside], keys[outside])
    return landed


def mixed(values: np.ndarray) -> np.ndarray:
    """Other numbers for uint64 (k), one for each, in which every bit depends on every bit.

    The last step of SplitMix64 (Steele et al., 2014; constants: Stafford's variant 13).
    """
    values = (values ^ (values >> 30)) * 0xBF58476D1CE4E5B9
    values = (values ^ (values >> 27)) * 0x94D049BB133111EB
    return values ^ (values >> 31)


def _moved(cells: np.ndarray, counts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where one pass through the network takes the cells of grids for `counts`."""
    heights = np.ceil(np.sqrt(counts)).astype(np.uint64)
    widths = (counts + heights - 1) // heights
    rows, columns = cells // widths, cells % widths
    for number in range(0, ROUNDS, 2):
        rows = (rows + _shift(columns, keys, number)) % heights
        columns = (columns + _shift(rows, keys, number + 1)) % widths
    return rows * widths + columns


def _shift(coordinates: np.ndarray, keys: np.ndarray, number: int) -> np.ndarray:
    # One bit less, so that adding a coordinate does not overflow.
    return mixed(coordinates ^ (keys + number * ODD % 2**64)) >> 1
