"""The loops over many users: whole files offline, and the worker's users without sealed chunks."""

from __future__ import annotations

from typing import Final

import numpy as np

from stream.features.windows.arrays import (
    _WINDOWS,
    CHUNK,
    DEFERRED,
    H_NEXT_CHUNK,
    H_PAGES,
    H_PENDING,
    HDR_SIZE,
    HEAD,
    OUT_SIZE,
    R_SIZE,
    SEGMENT,
    WINDOW_CACHE_SIZE,
    Sealed,
    clear_header,
    clear_sealed,
    is_full,
)
from stream.features.windows.chunks import _LINE_WORDS, seal
from stream.features.windows.kernel import step
from stream.features.windows.sums import ACC_SIZE
from stream.jit import Codes, Flags, Floats, Ints, jit_alloc, prefetch

__all__ = ["run_heads", "run_users"]

#: How many events ahead the offline driver prefetches a row's memory.
_AHEAD: Final = 8


@jit_alloc
def run_users(
    starts: Ints,
    order: Ints,
    t: Ints,
    amount: Ints,
    merchant: Ints,
    id_hash: Ints,
    minor_units: Ints,
    horizon_ms: int,
    lateness_ms: int,
    ttl_ms: int,
    max_chunks: int,
    outcome: Codes,
    features: Floats,
    sealed: Sealed,
) -> None:
    """Process whole users from an empty history, in arrival order: the offline driver.

    Parameters
    ----------
    starts : int64[users + 1]
        Index in ``order`` of each user's first event.
    order : int64[events]
        Row numbers, grouped by user.
    outcome : uint8[rows], features : float64[rows, OUT_SIZE]
        Written at the events' rows.
    sealed
        Scratch, of whole segments, for the chunks of the user with most events, all of them loaded.
    """
    hdr = np.zeros(HDR_SIZE, np.int64)
    head = np.zeros((4, HEAD), np.int64)
    slots = np.arange(len(sealed.store)).astype(np.int32)
    pending = np.zeros(CHUNK, np.int64)
    low = np.zeros(_WINDOWS, np.int64)
    acc = np.zeros((_WINDOWS, ACC_SIZE), np.int64)
    row_words = features.strides[0] // features.itemsize
    for user in range(len(starts) - 1):
        clear_header(hdr)
        chunks = (starts[user + 1] - starts[user]) // CHUNK
        hdr[H_PAGES] = (chunks + SEGMENT - 1) // SEGMENT
        if chunks > 0:
            clear_sealed(sealed, 0, hdr[H_PAGES])
        for index in range(starts[user], starts[user + 1]):
            # A user's rows lie far apart in the file.
            if index + _AHEAD < len(order):
                coming = order[index + _AHEAD]
                prefetch(t, coming)
                prefetch(amount, coming)
                prefetch(merchant, coming)
                prefetch(id_hash, coming)
                prefetch(minor_units, coming)
                prefetch(outcome, coming)
                for word in range(0, OUT_SIZE + _LINE_WORDS, _LINE_WORDS):
                    prefetch(features, coming * row_words + word)
            row = order[index]
            outcome[row] = step(
                hdr, head, sealed, pending,
                index, 1, t[row], amount[row], merchant[row], id_hash[row], minor_units[row],
                horizon_ms, lateness_ms, ttl_ms, True, low, acc, features[row],
            )  # fmt: skip
            if hdr[H_PENDING] == CHUNK:
                hdr[H_PENDING] = 0
            if is_full(hdr):
                seal(hdr, head, sealed, slots, hdr[H_NEXT_CHUNK], max_chunks)


@jit_alloc
def run_heads(
    hdrs: Ints,
    heads: Ints,
    busy: Flags,
    user: Ints,
    offset: Ints,
    source: Ints,
    t: Ints,
    amount: Ints,
    merchant: Ints,
    id_hash: Ints,
    minor_units: Ints,
    horizon_ms: int,
    lateness_ms: int,
    ttl_ms: int,
    learn: bool,
    outcome: Codes,
    features: Floats,
) -> None:
    """Process a batch's events of users without sealed chunks: the worker's common case.

    ``busy[u]`` marks users to leave out. A user whose head fills up becomes busy, and its later events in the
    batch are marked DEFERRED for the caller.
    """
    sealed = Sealed(
        np.zeros((0, 2), np.int64),
        np.zeros((0, 4), np.int64),
        np.zeros(0, np.uint32),
        np.zeros((0, CHUNK), np.int64),
        np.zeros((0, CHUNK), np.uint32),
        np.zeros((0, 7), np.int64),
        np.zeros(0, np.uint32),
        np.zeros(0, np.uint32),
        np.zeros((0, WINDOW_CACHE_SIZE), np.int64),
        np.zeros(0, np.int32),
        np.zeros(0, np.int32),
        np.zeros((0, 4, CHUNK), np.int64),
        np.zeros((0, R_SIZE), np.int64),
    )
    pending = np.zeros(CHUNK, np.int64)
    low = np.zeros(_WINDOWS, np.int64)
    acc = np.zeros((_WINDOWS, ACC_SIZE), np.int64)
    for index in range(len(user)):
        who = user[index]
        if busy[who]:
            outcome[index] = DEFERRED
            continue
        outcome[index] = step(
            hdrs[who], heads[who], sealed, pending,
            offset[index], source[who], t[index], amount[index],
            merchant[index], id_hash[index], minor_units[index],
            horizon_ms, lateness_ms, ttl_ms, learn, low, acc, features[index],
        )  # fmt: skip
        if is_full(hdrs[who]):
            busy[who] = True
