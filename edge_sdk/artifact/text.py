"""Free text as hashed character n-grams, so that the text itself need not be kept. Pure; refuses nothing.

Works for Chinese and English alike: no word has to be found. The hash is signed (Weinberger et al. 2009, "Feature
hashing for large scale multitask learning"), so that collisions cancel in the mean; the vector has length 1.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter
from typing import Final

LONGEST: Final = 2000  # characters; what follows is not read
GRAMS: Final = (1, 2, 3)


def hashed(text: str, width: int) -> list[tuple[int, float]]:
    """(bucket, value) pairs below `width`, by bucket; [] for a text without a character."""
    plain = " ".join(unicodedata.normalize("NFKC", text[:LONGEST]).lower().split())
    grams = Counter(plain[i : i + n] for n in GRAMS for i in range(len(plain) - n + 1))
    buckets: dict[int, float] = {}
    for gram, n in grams.items():
        digest = int.from_bytes(hashlib.blake2b(gram.encode("utf-8", "replace"), digest_size=8).digest(), "big")
        sign = 1.0 if digest >> 63 else -1.0
        bucket = digest % width
        buckets[bucket] = buckets.get(bucket, 0.0) + sign * math.sqrt(n)
    length = math.sqrt(sum(value * value for value in buckets.values()))
    return [(bucket, value / length) for bucket, value in sorted(buckets.items()) if value] if length else []
