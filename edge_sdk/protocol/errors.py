"""Every error of the protocol, split by whose fault it is. Imports nothing of ours.

* ProtocolError
  + LocalProtocolError      we broke a rule: a bug or a bad setting, never retried
    - SizingRefused         the sum could wrap around the modulus, or the profile is too weak
    - CommitteeRefused      too few members for the safety the table demands
    - SelfTestFailed        the known-answer test at start did not give the known answer
  + RemoteProtocolError     they broke a rule: drop the message, keep the round
    - MalformedMessage      not a message of ours: length, magic, encoding, unknown field, range
    - WrongSignature        the signature does not hold for this sender, recipient and fleet
    - WrongSeal             the ciphertext does not open under the key and context it claims
    - UnexpectedMessage     well formed, but not now: wrong round, phase, order or a repeat
    - OfferRefused          the offer breaks the protocol or this device's own policy
    - OpeningRefused        a committee member will not answer this request
    - WrongSum              the opened sum is not the sum of what was sent (canaries, surplus answers)

Every refusal carries a short `reason` that is counted and logged.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Root of the tree. `reason` is a stable kebab-case word for counters and logs."""

    def __init__(self, message: str, *, reason: str = "unspecified") -> None:
        super().__init__(message)
        self.reason = reason


class LocalProtocolError(ProtocolError):
    """We broke a rule."""


class SizingRefused(LocalProtocolError):
    """The sum could wrap around the modulus, or the profile is too weak."""


class CommitteeRefused(LocalProtocolError):
    """Too few members for the safety the table demands."""


class SelfTestFailed(LocalProtocolError):
    """The known-answer test at start did not give the known answer."""


class RemoteProtocolError(ProtocolError):
    """They broke a rule: drop the message, keep the round."""


class MalformedMessage(RemoteProtocolError):
    """Not a message of ours."""


class WrongSignature(RemoteProtocolError):
    """The signature does not hold for this sender, recipient and fleet."""


class WrongSeal(RemoteProtocolError):
    """The ciphertext does not open under the key and context it claims."""


class UnexpectedMessage(RemoteProtocolError):
    """Well formed, but not now."""


class OfferRefused(RemoteProtocolError):
    """The offer breaks the protocol or this device's own policy."""


class OpeningRefused(RemoteProtocolError):
    """A committee member will not answer this request."""


class WrongSum(RemoteProtocolError):
    """The opened sum is not the sum of what was sent."""
