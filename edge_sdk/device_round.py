"""One device's side of one round: which offers it accepts, and where its upload stands (SPEC 6.5, 7.1 to 7.3).

Does no I/O, reads no clock, draws no randomness. Refuses every offer that breaks the protocol or the device's own
policy, with the reason that SPEC 7.1 names.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from edge_sdk.privacy.charges import too_little_noise
from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage, OfferRefused, ProtocolError
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.roster import Roster, RosterEntry

LONGEST_ROUND_S: Final = 7 * 86_400


class UploadState(enum.Enum):
    """Where an upload stands; the last four are final."""

    ANNOUNCED = "announced"
    SENDING = "sending"
    SENT = "sent"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


class UploadEvent(enum.Enum):
    """What can happen to an upload."""

    GRANT = "Grant"
    ACK_PARTIAL = "Ack, bits missing"
    ACK_COMPLETE = "Ack, complete"
    RECONNECT = "reconnect"
    SILENCE = "silence"
    RECEIPT_ACCEPTED = "Receipt(true)"
    RECEIPT_REFUSED = "Receipt(false)"
    REFUSAL = "Refusal"
    CLOSED = "closes_at passes"
    CONSENT_WITHDRAWN = "consent withdrawn"


_S, _E = UploadState, UploadEvent
OPEN_STATES: Final = (_S.ANNOUNCED, _S.SENDING, _S.SENT)

TRANSITIONS: Final[dict[tuple[UploadState, UploadEvent], UploadState]] = {
    (_S.ANNOUNCED, _E.GRANT): _S.SENDING,
    (_S.SENDING, _E.ACK_PARTIAL): _S.SENDING,
    (_S.SENDING, _E.ACK_COMPLETE): _S.SENT,
    (_S.SENDING, _E.RECONNECT): _S.ANNOUNCED,
    (_S.SENDING, _E.SILENCE): _S.ANNOUNCED,
    (_S.SENT, _E.RECONNECT): _S.ANNOUNCED,
    (_S.SENT, _E.SILENCE): _S.ANNOUNCED,
    **{(state, _E.RECEIPT_ACCEPTED): _S.ACCEPTED for state in OPEN_STATES},
    **{(state, _E.RECEIPT_REFUSED): _S.REFUSED for state in OPEN_STATES},
    **{(state, _E.REFUSAL): _S.REFUSED for state in OPEN_STATES},
    **{(state, _E.CLOSED): _S.EXPIRED for state in OPEN_STATES},
    **{(state, _E.CONSENT_WITHDRAWN): _S.WITHDRAWN for state in OPEN_STATES},
}


def step(state: UploadState, event: UploadEvent) -> UploadState:
    """The next state. An event that the table does not list here changes nothing: it came late or twice (SPEC 4.3)."""
    return TRANSITIONS.get((state, event), state)


class Policy(Protocol):
    """The device's own word; `edge_sdk.Config` fits."""

    @property
    def min_cohort(self) -> int: ...
    @property
    def max_delta(self) -> float: ...
    @property
    def units(self) -> tuple[str, ...]: ...
    @property
    def placements(self) -> tuple[str, ...]: ...
    @property
    def insecure_without_noise(self) -> bool: ...
    @property
    def max_honest_share(self) -> float: ...
    @property
    def analytics(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class OwnKeys:
    """Who this device is: name, Ed25519 public key, and every X25519 public key it holds now (32 bytes each)."""

    device: str
    sign_key: bytes
    epoch_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What this device knows of a task: the highest round it uploaded for, and any offer it holds for this round."""

    uploaded_round: int = 0
    uploaded_hash: bytes = b""
    held_hash: bytes = b""  # H of the offer verified for the same (task, round), empty if none


def check_terms(offer: Offer, offer_hash: bytes, *, fleet: str, min_cohort: int, seen: Seen) -> None:
    """What binds a committee member and an uploader alike and needs neither roster nor time. Raises OfferRefused."""
    if offer.fleet != fleet:
        raise OfferRefused(f"an offer of fleet {offer.fleet}", reason="fleet")
    held = seen.held_hash or (seen.uploaded_hash if seen.uploaded_round == offer.round else b"")
    if held and held != offer_hash:
        raise OfferRefused(f"round {offer.round} was offered before with other terms", reason="equivocation")
    terms = offer.secagg
    if terms.n_min < min_cohort or terms.n_max < terms.n_min:
        raise OfferRefused(
            f"cohorts of {terms.n_min} to {terms.n_max}; this device asks for at least {min_cohort}", reason="cohort"
        )
    check_sizing(offer)
    _check_round_key(offer)


def _check_round_key(offer: Offer) -> None:
    """Before anything is trained: what is learnt could not be sealed to a key that is none."""
    from edge_sdk.protocol.sealing import check_round_key

    try:
        check_round_key(offer.round_key)
    except MalformedMessage as error:
        raise OfferRefused(str(error), reason=error.reason) from error


def check_open(offer: Offer, now: int) -> None:
    """The round is open, and not for longer than a week. Raises OfferRefused."""
    if not now < offer.closes_at <= now + LONGEST_ROUND_S:
        raise OfferRefused(f"the round closes at {offer.closes_at}, it is {now}", reason="closed")


def check_sizing(offer: Offer) -> None:
    """SPEC 7.2: the sum of the largest cohort must fit the modulus. Raises OfferRefused."""
    from edge_sdk.protocol.quantize import integer_bound
    from edge_sdk.protocol.secagg.committee import check_headroom
    from edge_sdk.protocol.secagg.ring import profile

    terms = offer.privacy
    sigma = device_sigma(offer)
    try:
        bound = integer_bound(terms.clip, terms.step)
        check_headroom(profile(offer.secagg.profile), offer.secagg.n_max, bound, sigma)
    except ProtocolError as error:
        raise OfferRefused(f"the terms do not fit: {error}", reason="sizing") from error


def device_sigma(offer: Offer) -> float:
    """Standard deviation, in quantisation steps, of the noise this device adds to the update (SPEC 7.2)."""
    from edge_sdk.privacy.charges import sigma_steps

    return sigma_steps(offer.privacy)


def check_privacy(offer: Offer, policy: Policy) -> None:
    """The noise and the unit, before any budget is looked at. Raises OfferRefused."""
    terms = offer.privacy
    honest = max(1, math.floor(policy.max_honest_share * offer.secagg.n_min))
    if terms.placement == "shared" and terms.honest > honest:
        raise OfferRefused(
            f"the noise is shared over {terms.honest} devices, this device takes {honest} of {offer.secagg.n_min} that "
            "may be opened to be honest",
            reason="honest",
        )
    if terms.unit not in policy.units:
        raise OfferRefused(f"the unit {terms.unit} is not allowed here", reason="privacy")
    if terms.placement not in policy.placements:
        raise OfferRefused(f"{terms.placement} noise is not allowed here", reason="privacy")
    if terms.placement == "shared" and terms.unit != "device" and terms.steps != 1:
        # A second step would be taken from weights that the first, not yet noised, has moved.
        raise OfferRefused(f"noise shared by sums of gradients is one step, not {terms.steps}", reason="privacy")
    if (terms.insecure_without_noise or terms.noise_multiplier == 0) and not policy.insecure_without_noise:
        raise OfferRefused("the offer adds no noise and this device does not allow that", reason="privacy")
    if too_little_noise(terms):
        raise OfferRefused(f"a noise multiplier of {terms.noise_multiplier:g} protects nobody", reason="privacy")
    if terms.weight_bound and terms.unit != "device" and not terms.insecure_without_noise:
        what = f"an update weighted by examples would betray their number, which the {terms.unit} unit hides"
        raise OfferRefused(what, reason="privacy")
    if terms.delta > policy.max_delta:
        raise OfferRefused(f"delta {terms.delta:g} is above this device's {policy.max_delta:g}", reason="privacy")


def check_upload(offer: Offer, policy: Policy, seen: Seen) -> None:
    """What an uploader checks beyond `check_terms`. Raises OfferRefused."""
    if offer.round <= seen.uploaded_round:
        raise OfferRefused(f"round {offer.round} is not above {seen.uploaded_round}", reason="round")
    check_privacy(offer, policy)
    check_query(offer, policy)


def check_query(offer: Offer, policy: Policy) -> None:
    """A query is allowed here and has a sound vector of the offer's length (SPEC 7.9). Raises OfferRefused."""
    from edge_sdk.analytics import layout

    if offer.query is None:
        return
    if not policy.analytics:
        raise OfferRefused("queries are switched off on this device", reason="query")
    if offer.privacy.steps != 1:
        raise OfferRefused(f"a query is answered once, not in {offer.privacy.steps} steps", reason="query")
    try:
        layout.check(offer.query)
    except layout.QueryRefused as error:
        raise OfferRefused(str(error), reason="query") from error
    if (wanted := layout.length(offer.query)) != offer.length:
        raise OfferRefused(f"the query has {wanted} values, the offer {offer.length}", reason="length")


def committee_of(seed: bytes, entries: Sequence[RosterEntry], stewards: bool) -> tuple[str, ...]:
    """The committee every device computes for itself (SPEC 7.3). Raises CommitteeRefused."""
    from edge_sdk.protocol.secagg import committee

    eligible = sorted(entry.device for entry in entries if entry.steward or not stewards)
    return tuple(committee.draw(seed, eligible, committee.members_for(len(eligible))))


def check_roster(offer: Offer, roster: Roster, me: OwnKeys) -> None:
    """The roster is the offer's, names this device with keys of its own, and gives the offer's committee."""
    terms = offer.secagg
    if (roster.statement_hash, roster.epoch) != (terms.statement_hash, terms.epoch):
        raise OfferRefused("the roster is not the one that the offer names", reason="roster")
    mine = next((entry for entry in roster.entries if entry.device == me.device), None)
    if mine is None or mine.sign_key != me.sign_key or mine.epoch_key not in me.epoch_keys:
        raise OfferRefused("the roster does not name this device with its own keys", reason="roster")
    _check_committee(offer, roster)


def _check_committee(offer: Offer, roster: Roster) -> None:
    from edge_sdk.protocol.secagg import committee

    try:
        expected = committee_of(roster.seed, roster.entries, offer.secagg.stewards)
        committee.plan(len(expected))
    except LocalProtocolError as error:
        raise OfferRefused(f"no committee follows from the roster: {error}", reason="committee") from error
    if offer.secagg.committee != expected:
        raise OfferRefused("the committee is not the one that follows from the roster", reason="committee")
    _check_member_keys(expected, roster)


def _check_member_keys(members: Sequence[str], roster: Roster) -> None:
    from edge_sdk.protocol.sealing import check_member_key

    for entry in roster.entries:
        if entry.device in members:
            try:
                check_member_key(entry.epoch_key)
            except MalformedMessage as error:
                raise OfferRefused(f"{entry.device}: {error}", reason=error.reason) from error


def check_offer(
    offer: Offer,
    offer_hash: bytes,
    *,
    fleet: str,
    roster: Roster,
    me: OwnKeys,
    policy: Policy,
    seen: Seen,
    now: int,
) -> None:
    """All of SPEC 7.1 that needs no file, budget or model. The roster must have been verified. Raises OfferRefused."""
    check_terms(offer, offer_hash, fleet=fleet, min_cohort=policy.min_cohort, seen=seen)
    check_open(offer, now)
    check_upload(offer, policy, seen)
    check_roster(offer, roster, me)
