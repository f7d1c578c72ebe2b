"""The opening at the aggregator: an answer that is not one is refused by its reason, and the round is unharmed."""

from __future__ import annotations

import os

import pytest
from small_fleet import SmallFleet
from test_service_rounds import ended, offer_of, raised, start

from aggregator.opening_requests import expected_hash
from edge_sdk.protocol import codec
from edge_sdk.protocol.chunks import share_info
from edge_sdk.protocol.messages import Share, ShareBody
from edge_sdk.protocol.sealing import seal_to_round
from edge_sdk.protocol.secagg.committee import plan
from edge_sdk.protocol.secagg.ring import profile


@pytest.fixture
def opening(tmp_path):
    """A round that waits for its committee, none of which has answered."""
    fleet = SmallFleet(tmp_path / "home")
    for device in fleet.devices:
        device.answers_openings = False
    start(fleet, rounds=1)
    fleet.run(lambda: fleet.phase() == "opening")
    return fleet


class Answers:
    """Makes answers of one member, true and false."""

    def __init__(self, fleet, place: int = 0) -> None:
        self.offer = offer_of(fleet)
        self.member = place + 1
        self.device = next(d for d in fleet.devices if d.name == self.offer.secagg.committee[place])
        self.digest = self.device.offers["churn", 1][1]
        live = fleet.service._rounds._open["churn"]
        self.survivors = expected_hash(live.terms, fleet.service._rounds._openings.groups(live.terms, live.grouping))
        committee = plan(len(self.offer.secagg.committee))
        self.sums = bytes(2 * profile(self.offer.secagg.profile).degree // committee.packing)

    def body(self, **changes) -> bytes:
        fields = {"offer_hash": self.digest, "survivors_hash": self.survivors, "member": self.member}
        return codec.pack(ShareBody(**{**fields, "sums": (self.sums,), **changes}))

    def sealed(self, body: bytes, *, member: str = "", digest: bytes = b"") -> Share:
        info = share_info(digest or self.digest, member or self.device.name)
        return Share("churn", 1, seal_to_round(body, self.offer.round_key, info))


FALSE = {
    "not sealed": (lambda a: Share("churn", 1, os.urandom(1300)), "round-seal"),
    "too short to be sealed": (lambda a: Share("churn", 1, bytes(1130)), "round-seal"),
    "sealed for another member": (lambda a: a.sealed(a.body(), member="device-x"), "round-seal"),
    "sealed for another offer": (lambda a: a.sealed(a.body(), digest=bytes(32)), "round-seal"),
    "rubbish": (lambda a: a.sealed(b"rubbish"), "body"),
    "with something behind it": (lambda a: a.sealed(a.body() + b"\x00"), "body"),
    "of another offer": (lambda a: a.sealed(a.body(offer_hash=bytes(32))), "other-offer"),
    "of another member": (lambda a: a.sealed(a.body(member=a.member % 5 + 1)), "other-offer"),
    "of other survivors": (lambda a: a.sealed(a.body(survivors_hash=bytes(32))), "other-survivors"),
    "empty": (lambda a: a.sealed(a.body(sums=(b"",))), "share-range"),
    "two bytes short": (lambda a: a.sealed(a.body(sums=(a.sums[:-2],))), "share-range"),
    "two bytes long": (lambda a: a.sealed(a.body(sums=(a.sums + b"\x00\x00",))), "share-range"),
    "of two groups": (lambda a: a.sealed(a.body(sums=(a.sums, a.sums))), "share-range"),
    "above the prime": (lambda a: a.sealed(a.body(sums=(a.sums[:-2] + b"\xff\xff",))), "share-range"),
    "at the prime": (lambda a: a.sealed(a.body(sums=((65521).to_bytes(2, "little") + a.sums[2:],))), "share-range"),
}


def test_every_false_answer_is_refused_by_its_reason_and_the_round_is_unharmed(opening):
    """All of them in one round, from one member that then answers truly; a true answer repeated counts once."""
    answers, store = Answers(opening), opening.service.store
    expected: dict[str, int] = {}
    for name, (make, reason) in FALSE.items():
        answers.device.say(make(answers))
        opening.turn()
        expected[reason] = expected.get(reason, 0) + 1
        assert opening.refused("share", reason) == expected[reason], name
        assert answers.device.refusals[-1].reason == reason
        assert store.answers("churn", 1) == {}
        assert opening.phase() == "opening"
    for device in opening.devices:
        device.answers_openings = True
    opening.run(ended(opening))
    assert opening.phase() == "released"
    assert raised(opening) == [1] * 6


def test_an_answer_of_a_device_outside_the_committee_and_one_to_another_round_are_refused(opening):
    answers = Answers(opening)
    outside = opening.add("device-late", 9, answers.device.key)  # enrolled after the offer
    outside.say(answers.sealed(answers.body(), member=outside.name))
    share = answers.sealed(answers.body())
    answers.device.say(Share("churn", 2, share.sealed))
    answers.device.say(Share("other", 1, share.sealed))
    opening.turn()
    assert opening.refused("share", "not-member") == 1
    assert opening.refused("share", "not-opening") == 2
    assert opening.service.store.answers("churn", 1) == {}


def test_the_first_answer_of_a_member_stands(opening):
    answers, store = Answers(opening), opening.service.store
    answers.device.say(answers.sealed(answers.body()))
    opening.turn()
    first = store.answers("churn", 1)
    assert list(first) == [answers.member]
    other = (1).to_bytes(2, "little") + answers.sums[2:]
    answers.device.say(answers.sealed(answers.body(sums=(other,))))
    opening.turn()
    assert store.answers("churn", 1) == first
