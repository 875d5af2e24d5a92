"""Entries listed by target, listed by pool sample instead: in place, so that memory has them once.

The lists of a million targets are gigabytes, and putting each entry at the end of its sample's at once would touch as
many places as there are samples, in no order: a cache miss for each entry, the more expensive the larger the pool.
So there are two rounds of American flag sort (McIlroy, Bostic and McIlroy, "Engineering radix sort", 1993): into
buckets of consecutive samples, about as many as samples in a bucket, then within each bucket. In both the places that
are written to fit in a cache, so that the cost of an entry hardly grows with the pool.

In the first round an entry's place gives its target, as it has not moved yet. From then on target and sample share the
32 bits that the sample had: of the sample those that its bucket leaves open, which limits the size of a bucket.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nncift.matrix.compiled import kernels
from nncift.matrix.compiled.entries import Entries
from nncift.matrix.compiled.factored import compiled

_BITS = 32


def by_sample(values: np.ndarray, which: np.ndarray, n: int) -> Entries:
    """The entries above 0 by pool sample; those of a sample are in no particular order.

    Args:
        values: float32 (n_target, helpers), C-contiguous; overwritten.
        which: the pool sample of each, int32 likewise; of entries above 0, from 0 to n - 1; overwritten.
        n: number of pool samples.
    """
    n_target, helpers = values.shape
    target_bits = max(n_target - 1, 1).bit_length()
    shift = min((n.bit_length() + 1) // 2, _BITS - target_bits)
    kept, codes = values.reshape(-1), which.reshape(-1).view(np.uint32)
    ends = np.zeros((n >> shift) + 2, dtype=np.int64)
    _count(kept, codes, shift, ends[1:])
    np.cumsum(ends, out=ends)
    buckets, starts = ends.copy(), np.zeros(n + 1, dtype=np.int64)
    _divide(kept, codes, helpers, (shift, target_bits), (buckets, ends))
    kernels.share(
        lambda piece: _sort_buckets(kept, codes, (shift, target_bits), buckets, piece.start, piece.stop, starts),
        len(buckets) - 1,
        1,
    )
    starts[n] = buckets[-1]
    return Entries(kept[: starts[n]], starts, codes.view(np.int32)[: starts[n]])


@compiled
def _count(values: np.ndarray, which: np.ndarray, shift: int, counts: np.ndarray) -> None:
    for place in range(len(values)):
        if values[place] > 0:
            counts[which[place] >> shift] += 1


@compiled
def _divide(
    values: np.ndarray,
    codes: np.ndarray,
    helpers: int,
    bits: tuple[int, int],
    places: tuple[np.ndarray, np.ndarray],
) -> None:
    """Sort by bucket, in place, and replace the sample of an entry by its code.

    An entry is put at the end of its bucket's, and the one that lay there is the next: a chain. Entries of 0 or less
    are lost: first chains begin at the places that will be empty, and each ends at such an entry; what is then left are
    cycles.

    Args:
        values: float32 (n_target * helpers,), a target after the other.
        codes: the pool sample of each, uint32, afterwards the code.
        helpers: places of a target.
        bits: of a sample in its bucket, and of a target.
        places: int64 (buckets + 1,): where the entries of each bucket will begin, and where those of each that are
            sorted end.
    """
    starts, ends = places
    buckets = len(starts) - 1
    for first in range(starts[buckets], len(values)):
        value, i, j = values[first], np.int64(codes[first]), first // helpers
        while value > 0:
            value, i, j = _put(values, codes, helpers, bits, ends, value, i, j)
    for bucket in range(buckets):
        while ends[bucket] < starts[bucket + 1]:
            first = ends[bucket]
            value, i, j = values[first], np.int64(codes[first]), first // helpers
            while i >> bits[0] != bucket:
                value, i, j = _put(values, codes, helpers, bits, ends, value, i, j)
            values[first] = value
            codes[first] = _code(i, j, bits)
            ends[bucket] += 1


@compiled
def _put(
    values: np.ndarray,
    codes: np.ndarray,
    helpers: int,
    bits: tuple[int, int],
    ends: np.ndarray,
    value: float,
    i: Any,
    j: int,
) -> Any:
    """Put an entry at the end of its bucket's: the one that lay there, its sample and its target."""
    bucket = i >> bits[0]
    place = ends[bucket]
    found = values[place], np.int64(codes[place]), place // helpers
    values[place] = value
    codes[place] = _code(i, j, bits)
    ends[bucket] += 1
    return found


@compiled
def _code(i: Any, j: int, bits: tuple[int, int]) -> Any:
    """The lower bits of a sample before those of a target."""
    return np.uint32(((i & ((1 << bits[0]) - 1)) << bits[1]) | j)


@compiled
def _sort_buckets(
    values: np.ndarray,
    codes: np.ndarray,
    bits: tuple[int, int],
    buckets: np.ndarray,
    first: int,
    stop: int,
    out: np.ndarray,
) -> None:
    """Sort some buckets by sample, in place, replace the codes by targets, and write where each sample's begin."""
    (shift, target_bits), target = bits, np.uint32((1 << bits[1]) - 1)
    size = 1 << shift
    for bucket in range(first, min(stop, len(buckets) - 1)):
        starts = np.zeros(size + 1, dtype=np.int64)
        for place in range(buckets[bucket], buckets[bucket + 1]):
            starts[(codes[place] >> target_bits) + 1] += 1
        starts[0] = buckets[bucket]
        for sample in range(size):
            starts[sample + 1] += starts[sample]
        ends = starts.copy()
        for sample in range(min(size, len(out) - (bucket << shift))):
            out[(bucket << shift) + sample] = starts[sample]
        for sample in range(size):
            while ends[sample] < starts[sample + 1]:
                value, code = values[ends[sample]], codes[ends[sample]]
                own = np.int64(code >> target_bits)
                while own != sample:
                    place = ends[own]
                    ends[own] += 1
                    value, values[place] = values[place], value
                    code, codes[place] = codes[place], code & target
                    own = np.int64(code >> target_bits)
                values[ends[sample]] = value
                codes[ends[sample]] = code & target
                ends[sample] += 1
