"""Selection on CPUs: the largest entries of a row of pre-activations, and the strongest pairs of KronSAE.

Of equal entries the one with the lower number is the larger, so what is selected depends on no order of looking.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latentbench.sae.sparse_kernels.compiling import FAST, Array, compiled

HALVINGS = 16
"""How often a bound is looked for between two others before the lower one is taken."""
RANKED = 256
"""Up to so many candidates are sorted by counting, for each, how many are larger: 16 comparisons in an instruction."""


@compiled
def sink(values: Array, indices: Array, root: int, size: int) -> None:
    """Restores a min-heap below `root`; of equal values the higher latent number counts as smaller."""
    value, index = values[root], indices[root]
    while True:
        child = 2 * root + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            values[right] < values[child] or (values[right] == values[child] and indices[right] > indices[child])
        ):
            child = right
        # Ties are broken by number throughout, so what leaves the heap last does not depend on the order of insertion.
        if values[child] > value or (values[child] == value and indices[child] < index):
            break
        values[root], indices[root] = values[child], indices[child]
        root = child
    values[root], indices[root] = value, index


@compiled
def sort_heap(values: Array, indices: Array, size: int) -> None:
    """Turns a min-heap into descending order."""
    for end in range(size - 1, 0, -1):
        values[0], values[end] = values[end], values[0]
        indices[0], indices[end] = indices[end], indices[0]
        sink(values, indices, 0, end)


@compiled
def heapify(values: Array, indices: Array, size: int) -> None:
    """Makes the first `size` entries a min-heap."""
    for root in range(size // 2 - 1, -1, -1):
        sink(values, indices, root, size)


def _column_maxima(row: Array, maxima: Array) -> None:
    """maxima[c] = the largest of row[c], row[c + columns], row[c + 2 columns], …, where `maxima` has `columns` entries."""
    width, columns = row.shape[0], maxima.shape[0]
    maxima[:] = row[:columns]
    start = columns
    # Four at a time: `maxima` is read and written a quarter as often.
    while start + 4 * columns <= width:
        one, two = row[start : start + columns], row[start + columns : start + 2 * columns]
        start += 2 * columns
        three, four = row[start : start + columns], row[start + columns : start + 2 * columns]
        start += 2 * columns
        for c in range(columns):
            left = one[c] if one[c] > two[c] else two[c]
            right = three[c] if three[c] > four[c] else four[c]
            largest = left if left > right else right
            maxima[c] = largest if largest > maxima[c] else maxima[c]
    while start < width:
        part = row[start : start + columns]
        for c in range(part.shape[0]):
            maxima[c] = part[c] if part[c] > maxima[c] else maxima[c]
        start += columns


def _extremes(numbers: Array) -> tuple[Any, Any]:
    """The smallest and the largest."""
    low = high = numbers[0]
    for c in range(numbers.shape[0]):
        low = numbers[c] if numbers[c] < low else low
        high = numbers[c] if numbers[c] > high else high
    return low, high


column_maxima = compiled(_column_maxima, FAST | {"nnan"})
"""`_column_maxima`, vectorised: what it makes of NaN is undefined, but a NaN loss has ended the training by then."""
extremes = compiled(_extremes, FAST | {"nnan"})
"""`_extremes`, vectorised likewise."""


@compiled
def how_many_reach(numbers: Array, bound: float) -> Any:
    """How many are at least `bound`."""
    found = np.int32(0)
    for c in range(numbers.shape[0]):
        found += np.int32(numbers[c] >= bound)
    return found


@compiled
def bound_for(maxima: Array, k: int, guess: float) -> Any:
    """A number that at least k of `maxima` reach, and hardly more; `guess` is where to begin to look for it."""
    low, high = extremes(maxima)
    probe = guess
    # Halving what is left, and not a heap: counting takes one instruction for many numbers and no branch. All that follows is
    # exact with any bound that k maxima reach, so a few halvings are enough.
    for _ in range(HALVINGS):
        if not low < probe < high:
            probe = (low + high) / 2
        found = how_many_reach(maxima, probe)
        if found >= k:
            low = probe
        else:
            high = probe
        if k <= found <= k + k // 16:
            break
        probe = (low + high) / 2
    return low


@compiled
def sort_by_rank(candidates: Array, places: Array, best: Array, where: Array) -> Any:
    """Writes the k largest of some candidates, descending; False, with anything written, where two of them are equal.

    A candidate's place is the number of larger ones.
    """
    number = candidates.shape[0]
    total: Any = 0
    for i in range(number):
        value = candidates[i]
        rank = np.int32(0)  # as wide as the numbers, so that as many are counted at once
        for j in range(number):
            rank += np.int32(candidates[j] > value)
        total += rank
        if rank < best.shape[0]:
            best[rank] = value
            where[rank] = places[i]
    # All ranks from 0 on once each: equal ones would share the lower of theirs. NaN ranks first as well.
    return total == number * (number - 1) // 2


@compiled
def sort_by_heap(candidates: Array, places: Array, best: Array, where: Array) -> None:
    """Writes the k largest of at least k candidates, descending; of equal ones the lower place is the larger."""
    k = best.shape[0]
    for i in range(k):
        best[i] = candidates[i]
        where[i] = places[i]
    heapify(best, where, k)
    for i in range(k, candidates.shape[0]):
        value, place = candidates[i], places[i]
        if value > best[0] or (value == best[0] and place < where[0]):
            best[0] = value
            where[0] = place
            sink(best, where, 0, k)
    sort_heap(best, where, k)


@compiled
def room_for_top(row: Array, k: int) -> Any:
    """Work space of `top_of_row` for rows like this one: maxima, columns, candidates, places."""
    width = row.shape[0]
    # About eight columns for each entry that is looked for: the k largest then stand in nearly k different ones. With more
    # there would be hardly fewer maxima than entries; with more than 64 entries to a column, many to search.
    columns = min(width, max(8 * k, width // 64))
    # One more than can be found: what is not found is written behind the last that was.
    return (
        np.empty(columns, row.dtype),
        np.empty(columns + 1, np.int64),
        np.empty(width + 1, row.dtype),
        np.empty(width + 1, np.int64),
    )


@compiled
def top_of_row(row: Array, guess: float, room: Any, best: Array, where: Array) -> Any:
    """Writes the k largest of `row`, descending, and their places; returns the bound that it used, a guess for the next row.

    Every column's maximum is an entry, so what k maxima reach bounds the k-th largest entry from below: only the few columns
    that reach it are searched.
    """
    maxima, chosen, candidates, places = room
    width, columns, k = row.shape[0], maxima.shape[0], best.shape[0]
    column_maxima(row, maxima)
    bound = bound_for(maxima, k, guess)
    number = found = 0
    # Every one is written down, and the next one over it if it was not meant: a branch here would be guessed wrong often.
    for c in range(columns):
        chosen[number] = c
        number += maxima[c] >= bound
    for i in range(number):
        for c in range(chosen[i], width, columns):
            candidates[found] = row[c]
            places[found] = c
            found += row[c] >= bound
    for c in range(found, k):  # only where NaN hides entries: keep them visible
        candidates[c] = row[c]
        places[c] = c
    found = max(found, k)
    if found > RANKED or not sort_by_rank(candidates[:found], places[:found], best, where):
        sort_by_heap(candidates[:found], places[:found], best, where)
    return bound


@compiled
def top_rows(pre: Array, values: Array, indices: Array, lo: int, hi: int) -> None:
    """The k largest of every row of `pre` [N, width], descending; k is the width of `values` [N, k]."""
    room, guess = room_for_top(pre[lo], values.shape[1]), pre[lo, 0]
    for n in range(lo, hi):
        guess = top_of_row(pre[n], guess, room, values[n], indices[n])


@compiled
def top_sums(product: Array, bias: Array, values: Array, indices: Array, lo: int, hi: int) -> None:
    """`top_rows` of `product` + `bias` in float32; `product` [N, width] are bfloat16 numbers as unsigned integers."""
    bits = np.empty(product.shape[1], np.uint32)
    row = bits.view(np.float32)
    row[:] = bias
    room, guess = room_for_top(row, values.shape[1]), bias[0]
    for n in range(lo, hi):
        # A bfloat16 number is the upper half of a float32. One row at a time, which stays in the processor's cache.
        for c in range(bits.shape[0]):
            bits[c] = np.uint32(product[n, c]) << np.uint32(16)
        for c in range(bits.shape[0]):
            row[c] += bias[c]
        guess = top_of_row(row, guess, room, values[n], indices[n])


@compiled
def least_of_top(maxima: Array, best: Array, where: Array) -> Any:
    """The k-th largest of `maxima`; k is the length of the work space `best` and `where`."""
    k = best.shape[0]
    # The caller's output row doubles as the heap: it is overwritten with the final choice afterwards.
    for b in range(k):
        best[b] = maxima[b]
        where[b] = b
    heapify(best, where, k)
    for b in range(k, maxima.shape[0]):
        if maxima[b] > best[0]:
            best[0] = maxima[b]
            where[0] = b
            sink(best, where, 0, k)
    return best[0]


@compiled
def pair_strength(u: float, v: float, signed: bool) -> float:
    """u · v where both are positive, or (signed) wherever the product is; otherwise 0."""
    return u * v if signed or (u > 0 and v > 0) else u * 0


@compiled
def head_bounds(row: Array, m: int, n: int, signed: bool, bounds: Array) -> None:
    """The largest pair strength of every head: `row` holds m base, then n extension pre-activations per head."""
    for head in range(bounds.shape[0]):
        start = head * (m + n)
        # Of a product of signed factors the largest is at a corner: both largest, or both smallest.
        high_u = low_u = row[start]
        for i in range(start + 1, start + m):
            high_u, low_u = max(high_u, row[i]), min(low_u, row[i])
        high_v = low_v = row[start + m]
        for j in range(start + m + 1, start + m + n):
            high_v, low_v = max(high_v, row[j]), min(low_v, row[j])
        bound = pair_strength(high_u, high_v, False)
        if signed:
            bound = max(bound, low_u * low_v, high_u * high_v)
        bounds[head] = bound


@compiled
def top_pairs(
    pre: Array, m: int, n: int, signed: bool, pruned: bool, values: Array, indices: Array, lo: int, hi: int
) -> None:
    """The k strongest pairs per token of `pre` [N, h(m + n)], descending, zero-padded.

    The strength of a head's best pair bounds all its pairs, and each bound is reached by a pair: only heads at or
    above the k-th largest bound can hold one of the k strongest (KronSAE selection without materialising all pairs).
    """
    heads, k = pre.shape[1] // (m + n), values.shape[1]
    bounds = np.empty(heads, pre.dtype)
    for t in range(lo, hi):
        row, best, where = pre[t], values[t], indices[t]
        head_bounds(row, m, n, signed, bounds)
        least = row[0] * 0
        if pruned and k <= heads:
            least = least_of_top(bounds, best, where)
        # Zeros are a valid heap and the padding at once: only strengths above zero displace them.
        best[:] = 0
        where[:] = 0
        for head in range(heads):
            if bounds[head] > 0 and bounds[head] >= least:
                start = head * (m + n)
                for i in range(m):
                    for j in range(n):
                        strength = pair_strength(row[start + i], row[start + m + j], signed)
                        # `>`: of equal strengths the pair that came first stays, which has the lower number.
                        if strength > best[0] and strength >= least:
                            best[0] = strength
                            where[0] = (head * m + i) * n + j
                            sink(best, where, 0, k)
        sort_heap(best, where, k)
