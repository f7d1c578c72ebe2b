"""Arithmetic in R_q = Z_q[X]/(X^N+1): profiles, public blocks and exact products. Draws no randomness. SPEC 7.4.

Refuses a profile that is too weak and any product whose rounding the bound below does not cover.

*Pair order.* Every polynomial is an array of N integers in which position 2k holds the coefficient of X^k and
position 2k+1 that of X^(k+N/2). The array, read as N/2 complex numbers, is then what the transform below takes.

*Product.* Let zeta = exp(i pi/N). A real polynomial a is known by its values at zeta^(4j+1), j < M = N/2, which are
the length-M discrete Fourier transform of (a_k + i a_(k+M)) zeta^k. So a product costs two complex transforms of
length N/2 of the public block and its result, one pointwise product, and no carry.

*Exactness.* Let u = 2^-53 and L = log2(M). Twiddles are within 4u of the true roots: a table of sines is, and so is
the product of two entries by which numpy's transform builds its own.
1. A transform has relative L2 error at most L eta, eta = 4u + 4(sqrt 2 + 4u)u/(1-4u) < 10u (Higham, Accuracy and
   Stability of Numerical Algorithms, 2nd ed., theorem 24.2). With the twist: at most 10u(L+1) each.
2. Write X, Y for the exact transforms; by Parseval |X|_2 = sqrt(M)|a|_2. By Cauchy-Schwarz the pointwise product has
   L1 norm at most M|a|_2|b|_2, and its L1 error, rounding of the product included (sqrt 5 u), at most
   (20u(L+1) + 3u) M |a|_2|b|_2 to first order.
3. The inverse multiplies, on each of the L levels, every term of a sum by a factor 1+delta, |delta| < 10u (twiddle 4u,
   product sqrt 5 u, addition u); the terms' magnitudes add up to at most |a|_2|b|_2 after the division by M. The
   untwist is one more level.
4. Total at any coefficient: below (30(L+1) + 3)u |a|_2|b|_2 <= 30(L+2) u N max|a| max|b|; second-order terms are
   below 2^-40 of it. Rounding to the nearest integer is right while this is below 1/2; we demand 1/4.
`limb_count` cuts the public block into as many limbs as that demand takes:

    profile  client |s| <= 32          server |S| <= 32760
    P16      1 limb  (3.9e-05)         1 limb  (4.0e-02)
    P24      1 limb  (1.0e-02)         2 limbs (2.5e-03)
    P32      2 limbs (8.6e-05)         2 limbs (8.8e-02)
"""

from __future__ import annotations

import hashlib
import math
import sys
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_sdk.protocol.errors import LocalProtocolError, SizingRefused
from edge_sdk.protocol.secagg.keystream import Keystream

# Wire integers are little-endian and the arrays below are views of them.
assert sys.byteorder == "little", "this implementation needs a little-endian processor"

CLIENT_BOUND: Final = 32
SERVER_BOUND: Final = 32760
# Largest modulus per degree that keeps at least 128 bits by the lattice estimator (research: secure aggregation, 3).
_STRONGEST_MODULUS_BITS: Final = {1024: 24, 2048: 32}
# Adding 1.5 * 2^52 rounds a float64 below 2^51 to the nearest integer and leaves it in the low mantissa bits.
_ROUNDING: Final = 6755399441055744.0
_GROUP_COEFFICIENTS: Final = 1 << 15

Residues = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Profile:
    """A ring: X^degree + 1 modulo 2^modulus_bits, `coefficient_bytes` a residue on the wire."""

    name: str
    degree: int
    modulus_bits: int
    coefficient_bytes: int

    def __post_init__(self) -> None:
        if self.modulus_bits > _STRONGEST_MODULUS_BITS.get(self.degree, 0):
            raise SizingRefused(
                f"degree {self.degree} with a {self.modulus_bits}-bit modulus is below 128 bits; use P16, P24 or P32",
                reason="weak-profile",
            )
        if self.coefficient_bytes * 8 != self.modulus_bits:
            raise SizingRefused("a residue fills its bytes", reason="weak-profile")

    @property
    def modulus(self) -> int:
        return 1 << self.modulus_bits


PROFILES: Final = {
    "P16": Profile("P16", 1024, 16, 2),
    "P24": Profile("P24", 1024, 24, 3),
    "P32": Profile("P32", 2048, 32, 4),
}


def profile(name: str) -> Profile:
    """The profile of that name. Raises SizingRefused for any other."""
    if name not in PROFILES:
        raise SizingRefused(f"there is no profile {name!r}; use one of {', '.join(PROFILES)}", reason="unknown-profile")
    return PROFILES[name]


def rounding_error(degree: int, left: int, right: int) -> float:
    """Upper bound on the error of a float64 product of polynomials with |coefficients| <= left, right (see above)."""
    levels = math.log2(degree // 2)
    return 30 * (levels + 2) * 2.0**-53 * degree * left * right


def limb_count(ring: Profile, bound: int) -> int:
    """Into how many limbs a public block is cut so that its product with |s| <= bound stays exact."""
    for count in (1, 2, 3, 4):
        if rounding_error(ring.degree, 1 << (_limb_bits(ring, count) - 1), bound) < 0.25:
            return count
    raise SizingRefused(f"a secret of magnitude {bound} has no exact product in {ring.name}", reason="inexact-product")


def _limb_bits(ring: Profile, count: int) -> int:
    return -(-ring.modulus_bits // count)


def public_seed(offer_hash: bytes) -> bytes:
    """Key of the public blocks of one round: SHA-256("A" || H), so nobody chooses them."""
    return hashlib.sha256(b"A" + offer_hash).digest()


def public_blocks(seed: bytes, ring: Profile, first: int, count: int) -> npt.NDArray[np.int32]:
    """Blocks A_first ... as int32[count, N] in pair order, each coefficient centred in [-q/2, q/2).

    A coefficient is one little-endian word of the keystream of `seed`: 16 bits for P16, else 32 bits of which P24
    keeps the upper 24. Any block can be had without those before it.
    """
    word_bytes = 2 if ring.modulus_bits == 16 else 4
    stream = Keystream(seed, first * ring.degree * word_bytes)
    if word_bytes == 2:
        return stream.uint16(count * ring.degree).view(np.int16).astype(np.int32).reshape(count, ring.degree)
    words = stream.uint32(count * ring.degree).view(np.int32)
    words >>= 32 - ring.modulus_bits
    return words.reshape(count, ring.degree)


class PublicTimes:
    """Products of one secret polynomial with the public blocks of a round. Hides itself when printed."""

    def __init__(self, ring: Profile, seed: bytes, secret: npt.NDArray[np.integer], bound: int) -> None:
        """`secret`: integers[N] in pair order with |coefficients| <= bound. Raises LocalProtocolError otherwise."""
        if secret.shape != (ring.degree,) or int(np.abs(secret.astype(np.int64)).max()) > bound:
            raise LocalProtocolError(f"a secret has {ring.degree} coefficients within {bound}", reason="secret-range")
        self._ring, self._seed = ring, seed
        self._limbs = limb_count(ring, bound)
        half = ring.degree // 2
        self._twist = np.exp(1j * np.pi * np.arange(half) / ring.degree)
        self._untwist = np.conj(self._twist)
        values = secret.astype(np.float64).view(np.complex128)
        # The division by N/2 that the inverse transform owes is paid here, exactly, as it is a power of two.
        self._transform = np.fft.fft(values * self._twist) / half

    def __repr__(self) -> str:
        return "PublicTimes(...)"

    @property
    def group(self) -> int:
        """Number of blocks whose working set stays in the second-level cache."""
        return _GROUP_COEFFICIENTS // self._ring.degree

    def blocks(self, first: int, count: int) -> Residues:
        """A_j * secret for j = first ... first + count - 1 as uint32[count, N], right modulo q in the low bits."""
        public = public_blocks(self._seed, self._ring, first, count)
        if self._limbs == 1:
            return self._product(public)
        bits = _limb_bits(self._ring, self._limbs)
        total = np.zeros(public.shape, np.uint32)
        for shift in range(0, bits * self._limbs, bits):
            total += self._product(_limb(public, shift, bits)) << np.uint32(shift)
        return total

    def _product(self, public: npt.NDArray[np.int32]) -> Residues:
        values = public.astype(np.float64).view(np.complex128)
        np.multiply(values, self._twist, out=values)
        np.fft.fft(values, axis=-1, out=values)
        np.multiply(values, self._transform, out=values)
        np.fft.ifft(values, axis=-1, norm="forward", out=values)
        np.multiply(values, self._untwist, out=values)
        reals = values.view(np.float64)
        np.add(reals, _ROUNDING, out=reals)
        return reals.view(np.uint32)[:, ::2]


def _limb(public: npt.NDArray[np.int32], shift: int, bits: int) -> npt.NDArray[np.int32]:
    """Signed digit of weight 2^shift, in [-2^(bits-1), 2^(bits-1)); the digits add up to `public` modulo q."""
    half = 1 << (bits - 1)
    # Overflow of 32 bits loses a multiple of 2^32, which is a multiple of q.
    carried = public.view(np.uint32) + np.uint32(sum(half << low for low in range(0, shift + 1, bits)))
    carried >>= np.uint32(shift)
    carried &= np.uint32((1 << bits) - 1)
    return carried.view(np.int32) - np.int32(half)
