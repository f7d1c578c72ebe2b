"""What a device accepts, and where its upload stands: compared with SPEC.md and with hand-made bad offers."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import edge_sdk.protocol
from edge_sdk import device_round
from edge_sdk.config import Config
from edge_sdk.device_round import TRANSITIONS, OwnKeys, Seen, UploadEvent, UploadState, check_offer
from edge_sdk.protocol import roster
from edge_sdk.protocol.errors import OfferRefused
from edge_sdk.protocol.messages import Offer, PrivacyTerms, SecAggTerms
from edge_sdk.protocol.roster import Roster, RosterEntry
from edge_sdk.protocol.sealing import ROUND_SECRET_BYTES, RoundKey

NOW = 1_800_000_000
AUTHORITY = Ed25519PrivateKey.from_private_bytes(bytes(32))
ENTRIES = [RosterEntry(f"kiosk-{i}", bytes([i]) * 32, bytes([i + 100]) * 32, steward=i < 6) for i in range(8)]


def roster_of(entries: list[RosterEntry]) -> Roster:
    signed = roster.sign(
        roster.freeze(entries), AUTHORITY, fleet="f0", epoch=1, beacon=bytes(32), issued_at=NOW, expires_at=NOW + 900
    )
    public = AUTHORITY.public_key().public_bytes_raw()
    return roster.verify(
        signed.statement, signed.signature, public, fleet="f0", entries=signed.entries, now=NOW, min_epoch=1
    )


ROSTER = roster_of(ENTRIES)
UNSEEN = Seen()
ROUND_KEY = RoundKey(bytes(range(ROUND_SECRET_BYTES))).public_bytes()
ME = OwnKeys("kiosk-3", bytes([3]) * 32, (bytes([102]) * 32, bytes([103]) * 32))


def offer(**changes: object) -> Offer:
    committee = device_round.committee_of(ROSTER.seed, ENTRIES, stewards=False)
    digest = ROSTER.statement_hash
    secagg = SecAggTerms("P24", 5, 8, 1, statement_hash=digest, stewards=False, committee=committee, groups=1)
    privacy = PrivacyTerms(
        "device",
        "shared",
        1.0,
        1.0,
        8,
        0.5,
        10,
        0.1,
        1e-5,
        honest=4,
        clip=1.0,
        step=0.01,
        insecure_without_noise=False,
        expected_batch=10,
        proximal=0.0,
        weight_bound=0,
    )
    plain = Offer(
        "f0", "churn", 7, NOW - 5, NOW + 600, (bytes(32),), 1000, bytes(32), 100, secagg, privacy, 0, ROUND_KEY, None
    )
    for name, value in changes.items():
        for part in ("secagg", "privacy"):
            terms = getattr(plain, part)
            if name in terms.__struct_fields__:
                plain = msgspec.structs.replace(plain, **{part: msgspec.structs.replace(terms, **{name: value})})
                break
        else:
            plain = msgspec.structs.replace(plain, **{name: value})
    return plain


def check(candidate: Offer, seen: Seen = UNSEEN, me: OwnKeys = ME, now: int = NOW, known: Roster = ROSTER) -> None:
    policy = Config(home=Path("unused"))
    check_offer(
        candidate, b"H" * 32, fleet="f0", roster=known, me=me, policy=policy, seen=seen, now=now
    )  # fmt: skip


def test_a_good_offer_is_accepted():
    check(offer())


REFUSED = [
    ({"n_min": 4}, "cohort"),
    ({"n_max": 5, "n_min": 6}, "cohort"),
    ({"closes_at": NOW}, "closed"),
    ({"closes_at": NOW + 8 * 86_400}, "closed"),
    ({"step": 1e-7}, "sizing"),
    ({"noise_multiplier": 1e9}, "sizing"),
    ({"honest": 5}, "honest"),
    ({"honest": 65_535}, "honest"),
    ({"n_min": 6, "honest": 5}, "honest"),
    ({"round_key": ROUND_KEY[:1184] + bytes(32)}, "round-key"),
    ({"noise_multiplier": 0.0}, "privacy"),
    ({"noise_multiplier": 0.049}, "privacy"),
    ({"unit": "record", "placement": "local", "honest": 1, "weight_bound": 9}, "privacy"),
    ({"insecure_without_noise": True}, "privacy"),
    ({"delta": 0.01}, "privacy"),
    ({"committee": tuple(f"kiosk-{i}" for i in range(5))}, "committee"),
    ({"stewards": True}, "committee"),
    ({"fleet": "f1"}, "fleet"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED)
def test_an_offer_that_breaks_a_rule_is_refused_with_its_reason(changes, reason):
    with pytest.raises(OfferRefused) as refused:
        check(offer(**changes))
    assert refused.value.reason == reason


def test_the_device_says_how_many_of_a_cohort_it_takes_to_be_honest():
    def takes(n_min: int, share: float) -> int:
        policy = Config(home=Path("unused"), max_honest_share=share)
        most = 0
        for honest in range(1, n_min + 1):
            with contextlib.suppress(OfferRefused):
                device_round.check_privacy(offer(n_min=n_min, n_max=400, honest=honest), policy)
                most = honest
        return most

    assert [takes(5, 0.8), takes(6, 0.8), takes(100, 0.8), takes(100, 0.5), takes(5, 1.0)] == [4, 4, 80, 50, 5]
    assert takes(3, 0.1) == 1, "this device itself"
    check(offer(unit="record", placement="local", honest=65_535))


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (Seen(uploaded_round=7, uploaded_hash=b"H" * 32), "round"),
        (Seen(uploaded_round=8, uploaded_hash=b"x" * 32), "round"),
        (Seen(uploaded_round=7, uploaded_hash=b"x" * 32), "equivocation"),
        (Seen(held_hash=b"x" * 32), "equivocation"),
    ],
)
def test_an_old_round_or_a_second_story_about_one_is_refused(seen, reason):
    with pytest.raises(OfferRefused) as refused:
        check(offer(), seen)
    assert refused.value.reason == reason


def test_a_device_that_the_roster_does_not_name_with_its_own_keys_takes_no_part():
    for me in (
        OwnKeys("stranger", ME.sign_key, ME.epoch_keys),
        OwnKeys(ME.device, bytes(32), ME.epoch_keys),
        OwnKeys(ME.device, ME.sign_key, (bytes(32), bytes([102]) * 32)),
    ):
        with pytest.raises(OfferRefused, match="own keys"):
            check(offer(), me=me)


def test_the_committee_of_stewards_has_no_other_device():
    committee = device_round.committee_of(ROSTER.seed, ENTRIES, stewards=True)
    assert committee == tuple(f"kiosk-{i}" for i in range(6))
    check(offer(stewards=True, committee=committee))


def test_a_roster_too_small_for_a_committee_is_refused():
    few = roster_of(ENTRIES[:4])
    with pytest.raises(OfferRefused) as refused:
        check(offer(statement_hash=few.statement_hash), known=few)
    assert refused.value.reason == "committee"


def test_another_roster_than_the_one_the_offer_names_is_refused():
    with pytest.raises(OfferRefused) as refused:
        check(offer(), known=roster_of(ENTRIES[:7]))
    assert refused.value.reason == "roster"


def test_the_noise_of_one_device_is_its_share_of_the_whole():
    terms = offer().privacy
    assert device_round.device_sigma(offer()) == pytest.approx(
        terms.noise_multiplier * terms.clip / terms.step / math.sqrt(terms.honest)
    )
    assert device_round.device_sigma(offer(unit="record", placement="local")) == 0.0


def test_the_transition_table_is_the_one_of_the_specification():
    text = (Path(edge_sdk.protocol.__file__).parent / "SPEC.md").read_text(encoding="utf-8")
    table = text.split("| Device state | event | next |\n|---|---|---|\n")[1].split("\n\n")[0]
    specified = {}
    for line in table.splitlines():
        states, events, following = (cell.strip() for cell in line.strip("|").split("|"))
        names = [e.value for e in UploadEvent]
        for event in [events] if events in names else [e.strip() for e in events.split(", ")]:
            for state in re.split(r",\s*", states):
                specified[UploadState(state), UploadEvent(event)] = UploadState(following)
    assert specified == TRANSITIONS


def test_nothing_moves_a_final_state():
    for state in (UploadState.ACCEPTED, UploadState.REFUSED, UploadState.EXPIRED):
        assert {device_round.step(state, event) for event in UploadEvent} == {state}
