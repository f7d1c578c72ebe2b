"""Free text as hashed n-grams of characters and words, so that the text itself need not be kept. Pure; refuses nothing.

Works for Chinese and English alike: no word has to be found. The hash is signed (Weinberger et al. 2009, "Feature
hashing for large scale multitask learning"), so that collisions cancel in the mean; the vector has length 1. It is
BLAKE2b of the n-gram, the same on every machine and in every release.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

LONGEST: Final = 2000  # characters; what follows is not read
GRAMS: Final = (1, 2, 3)
# An n-gram of words is told from one of characters by a letter that no text here holds: it counts as a space.
_WORDS_MARK: Final = "\x1f"
_WORD: Final = re.compile(r"[^\W_]+")
_CHUNK: Final = 1 << 19  # characters hashed at once: bounds the memory

Array = npt.NDArray[Any]


def bucket(word: str, buckets: int) -> int:
    """Where a word is hashed to: 0 to buckets - 1."""
    return _digest(word) % buckets


def hashed(text: str, width: int, chars: Sequence[int] = GRAMS, words: Sequence[int] = ()) -> list[tuple[int, float]]:
    """(bucket, value) pairs below `width`, by bucket; [] for a text without a character.

    `chars` and `words`: sizes of the n-grams of characters and of words. Linear in the length of the text.
    """
    _, buckets, values = hash_all([text], width, chars, words)
    return list(zip(buckets.tolist(), values.tolist(), strict=True))


def hash_all(
    texts: Sequence[str], width: int, chars: Sequence[int] = GRAMS, words: Sequence[int] = ()
) -> tuple[Array, Array, Array]:
    """The same for many texts: rows int64 [N], buckets int64 [N], values float64 [N], by row and then by bucket.

    sqrt of each n-gram's count, times the sign of its hash, added up by bucket, each row of length 1.
    """
    parts = [_hash_chunk(*chunk, width, chars, words) for chunk in _chunks(texts)]
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    rows, buckets, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    return rows, buckets, values


def normal(text: str) -> str:
    """What is hashed of a text: NFKC, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text[:LONGEST]).lower().split())


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of the first text, normal texts), about _CHUNK characters each."""
    first, size, chunk = 0, 0, list[str]()
    for index, text in enumerate(texts):
        chunk.append(normal(text))
        size += len(chunk[-1])
        if size >= _CHUNK:
            yield first, chunk
            first, size, chunk = index + 1, 0, []
    if chunk:
        yield first, chunk


def _hash_chunk(
    first: int, texts: list[str], width: int, chars: Sequence[int], words: Sequence[int]
) -> tuple[Array, Array, Array]:
    found = [*_char_grams(texts, chars), *_word_grams(texts, words)]
    rows, buckets, values = (np.concatenate(part) for part in zip(*found, strict=True))
    buckets %= np.uint64(width)
    places = rows * width + buckets.astype(np.int64)
    # Terms of a bucket are added in the order of sizes and, within one, of code points: never by what else is hashed.
    at, inverse = np.unique(places, return_inverse=True)
    sums = np.bincount(inverse, weights=values, minlength=len(at))
    rows, squares = at // width, sums * sums
    # Row by row, in order: a pairwise sum would depend on where a row begins.
    lengths = np.sqrt(np.bincount(rows, weights=squares, minlength=len(texts)))
    kept = sums != 0
    at, rows = at[kept], rows[kept]
    return rows + first, at % width, sums[kept] / lengths[rows]


def _terms(rows: Array, grams: Array, digests: Array) -> tuple[Array, Array, Array]:
    """Row, digest and signed sqrt(count) of each n-gram of each row. `grams` number `digests`."""
    pairs, counts = np.unique(rows * len(digests) + grams, return_counts=True)
    rows, found = pairs // len(digests), digests[pairs % len(digests)]
    signs = np.where(found >> np.uint64(63), 1.0, -1.0)
    return rows, found, signs * np.sqrt(counts)


def _char_grams(texts: list[str], sizes: Sequence[int]) -> Iterator[tuple[Array, Array, Array]]:
    """Terms of the n-grams of characters. A gram's number is its place among the distinct ones of the chunk."""
    joined = "".join(texts)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    alphabet, letters = np.unique(codes, return_inverse=True)
    numbers = letters
    for size in range(1, max(sizes, default=0) + 1):
        if size > 1:  # number of the first size - 1 characters, then of the last
            numbers = numbers[: len(letters) - size + 1] * len(alphabet) + letters[size - 1 :]
        numbers, count = _numbered(numbers, max(len(letters), 1))
        if size in sizes:
            at = np.zeros(count, np.int64)
            at[numbers] = np.arange(len(numbers))  # one place of each
            digests = np.array([_digest(joined[start : start + size]) for start in at.tolist()], np.uint64)
            whole = rows[: len(numbers)] == rows[len(rows) - len(numbers) :]
            yield _terms(rows[: len(numbers)][whole], numbers[whole], digests)


def _numbered(keys: Array, size: int) -> tuple[Array, int]:
    """Each key's place among the distinct ones, in order, and how many there are: by a table where that is small."""
    span = int(keys.max()) + 1 if len(keys) else 0
    if span > 8 * size:
        distinct, places = np.unique(keys, return_inverse=True)
        return places, len(distinct)
    there = np.zeros(span, bool)
    there[keys] = True
    numbers = np.cumsum(there, dtype=np.int64) - 1
    return numbers[keys], int(numbers[-1]) + 1 if span else 0


def _word_grams(texts: list[str], sizes: Sequence[int]) -> Iterator[tuple[Array, Array, Array]]:
    lists = [_WORD.findall(text) for text in texts] if sizes else []
    for size in sizes:
        grams = [" ".join(each[i : i + size]) for each in lists for i in range(len(each) - size + 1)]
        places = {gram: place for place, gram in enumerate(sorted(set(grams)))}
        digests = np.array([_digest(_WORDS_MARK + gram) for gram in places], np.uint64)
        rows = np.repeat(np.arange(len(lists)), [max(len(each) - size + 1, 0) for each in lists])
        numbers = np.array([places[gram] for gram in grams], np.int64)
        yield _terms(rows, numbers, digests)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")
