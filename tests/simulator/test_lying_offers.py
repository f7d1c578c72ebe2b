"""The aggregator lies about rounds: old ones, other committees and rosters, other models. As test_lying_aggregator.

Each attack runs twice: `defended` with the product as it is, then with exactly one function weakened, which the
test names.
"""

from __future__ import annotations

import lying_rounds
import msgspec
import numpy as np
from lying_aggregator import minus
from lying_rounds import COLLUDERS, EVERY_DEFENCE, TARGET, asked, forget_answers, honest_round, judge, without
from simulated_aggregator import AGGREGATOR_KEY, AUTHORITY_KEY
from simulated_device import DEAD_MODEL, DeviceKeysOf

from edge_sdk import device_round
from edge_sdk.held_offers import HeldOffer, HeldOffers
from edge_sdk.protocol import codec, roster
from edge_sdk.protocol.messages import Offer

liar, liar_with = lying_rounds.liar, lying_rounds.liar_with  # fixtures


@EVERY_DEFENCE
def test_an_old_round_is_not_opened_again_after_a_restart(liar, defended):
    """Removed: the durability of the journal. Every device restarts, and the liar asks for the old round once more."""
    digest = honest_round(liar)
    everybody = asked(liar, digest, liar.names)
    for device in liar.devices.values():
        if not defended:
            device.database.execute("DELETE FROM answers")
        device.crash()
    others = asked(liar, digest, without(liar, TARGET))
    judge(liar, liar.unmask(digest, minus(everybody, others), [TARGET]), defended, "answered")


@EVERY_DEFENCE
def test_a_round_is_not_offered_again_under_another_hash(liar, monkeypatch, defended):
    """Removed: all that goes by a round's number: `HeldOffers.seen`, the one offer a round, the one answer a round.

    The same update comes twice, under H and H'; one sum holds everybody, the other everybody but the target.
    """
    if not defended:
        forget_answers(monkeypatch)
        monkeypatch.setattr(HeldOffers, "seen", lambda self, task, number: device_round.Seen())
        monkeypatch.setattr(HeldOffers, "hold", hold_beside)
    stated = liar.state_roster()
    sums = []
    for offer, group in (
        (liar.offer(stated), liar.names),
        (liar.offer(stated, graph_digest=bytes(32), model_bytes=1001), without(liar, TARGET)),
    ):
        digest = liar.publish(offer, stated)
        if not defended:
            for device in liar.devices.values():
                device.database.execute("DELETE FROM outbox")
        uploaded = all((name, digest) in liar.uploads for name in group)
        sums.append(liar.unmask(digest, asked(liar, digest, group), group) if uploaded else None)
    seen = None if sums[1] is None else sums[0] - sums[1]
    judge(liar, seen, defended, "equivocation")


def hold_beside(self: HeldOffers, frame: bytes, offer: Offer, blob: bytes) -> None:
    """Keep the newest offer of a round in place of the one before."""
    terms = offer.secagg
    self._db.execute("INSERT OR REPLACE INTO rosters VALUES (?, ?, ?)", (terms.statement_hash, terms.epoch, blob))
    row = (codec.offer_hash(frame), offer.task, offer.round, frame)
    self._db.execute("INSERT OR REPLACE INTO offers VALUES (?, ?, ?, ?)", row)


@EVERY_DEFENCE
def test_a_committee_of_the_liar_s_choosing_is_not_served(liar_with, monkeypatch, defended):
    """Removed: `device_round._check_committee`. Four colluders and one more: four answers open a committee of five."""
    if not defended:
        monkeypatch.setattr(device_round, "_check_committee", lambda offer, stated: None)
    liar = liar_with(colluders=["d3", "d5", "d7", "d9"])
    stated = liar.state_roster()
    digest = liar.publish(liar.offer(stated, members=["d1", "d3", "d5", "d7", "d9"]), stated)
    seen = None
    if (TARGET, digest) in liar.uploads:
        seen = liar.unmask(digest, liar.collude(digest, [TARGET]), [TARGET])
    judge(liar, seen, defended, "committee", [TARGET])


@EVERY_DEFENCE
def test_an_old_roster_does_not_come_back(liar_with, monkeypatch, defended):
    """Removed: `min_epoch` of `roster.verify`. In epoch 1 there were five devices, four of them the liar's."""
    liar = liar_with(colluders=["d1", "d2", "d3", "d4"], n_min=5)
    if not defended:
        honest = roster.verify
        monkeypatch.setattr(roster, "verify", lambda *args, **given: honest(*args, **{**given, "min_epoch": 0}))
    newer = liar.state_roster(epoch=2)
    liar.publish(liar.offer(newer, 1), newer)
    older = liar.state_roster([liar.devices[f"d{i}"].keys.entry() for i in range(5)], epoch=1)
    digest = liar.publish(liar.offer(older, 2), older, to=[TARGET])
    seen = None
    if (TARGET, digest) in liar.uploads:
        seen = liar.unmask(digest, liar.collude(digest, [TARGET]), [TARGET])
    judge(liar, seen, defended, "roster", [TARGET])


@EVERY_DEFENCE
def test_a_roster_of_strangers_that_the_authority_did_not_sign_is_not_believed(liar_with, defended):
    """Removed: the authority, whose key the weakened device takes from the aggregator."""
    mine = AGGREGATOR_KEY.public_key().public_bytes_raw()
    theirs = AUTHORITY_KEY.public_key().public_bytes_raw()
    liar = liar_with(size=1, colluders=(), authority_key=theirs if defended else mine)
    strangers = [DeviceKeysOf(f"s{i}").entry() for i in range(9)]
    stated = liar.state_roster([liar.devices[TARGET].keys.entry(), *strangers], signed_by_me=True)
    digest = liar.publish(liar.offer(stated), stated)
    seen = None
    if (TARGET, digest) in liar.uploads:
        seen = liar.unmask(digest, liar.collude(digest, [TARGET]), [TARGET])
    judge(liar, seen, defended, "roster")


# -- model inconsistency ---------------------------------------------------------------------------------------------


def forgetful_hash(frame: bytes) -> bytes:
    """An offer hash that binds everything but the models."""
    offer = codec.unpack(frame[68:], Offer)
    body = codec.pack(msgspec.structs.replace(offer, models=(bytes(32),)))
    return HONEST_HASH(frame[:68] + body)


HONEST_HASH = codec.offer_hash


@EVERY_DEFENCE
def test_devices_that_were_offered_different_models_are_not_in_one_sum(liar, monkeypatch, defended):
    """Removed: the models in `codec.offer_hash`. All but the target train a dead model: the sum would be the target's.

    (Pasquini, Francati and Ateniese 2022, Eluding Secure Aggregation in Federated Learning via Model Inconsistency.)
    """
    if not defended:
        monkeypatch.setattr(codec, "offer_hash", forgetful_hash)
    stated = liar.state_roster()
    dead = liar.publish(liar.offer(stated, models=(DEAD_MODEL,)), stated, to=without(liar, TARGET))
    live = liar.publish(liar.offer(stated), stated, to=[TARGET])
    assert (live == dead) is not defended
    liar.uploads[TARGET, dead] = liar.uploads[TARGET, live]
    answers = liar.ask(dead, [liar.names])[0]
    judge(liar, liar.unmask(dead, answers, liar.names), defended, "wrong-signature", ["d1"])


@EVERY_DEFENCE
def test_a_hash_that_a_member_was_not_offered_is_not_opened(liar_with, monkeypatch, defended):
    """Removed: `HeldOffers.find`, where a member looks for the offer it verified itself.

    The offer goes to the target alone, with four devices of the liar's to make up the minimum of a laxer fleet.
    """
    liar = liar_with(colluders=["d3", "d7"], n_min=3)
    stated = liar.state_roster()
    offer = liar.offer(stated)
    digest = liar.publish(offer, stated, to=[TARGET, *COLLUDERS])
    if not defended:
        held = HeldOffer(offer, digest)
        monkeypatch.setattr(HeldOffers, "find", lambda self, wanted: held)
        monkeypatch.setattr(HeldOffers, "roster_blob", lambda self, wanted: stated.to_blob())
    group = [TARGET, *COLLUDERS]
    answers = liar.ask(digest, [group], members=[i for i in liar.members(digest) if i])[0]
    answers |= liar.collude(digest, group)
    seen = liar.unmask(digest, answers, group)
    if seen is not None:
        seen = seen - np.array(liar.one_hot(*COLLUDERS))
    judge(liar, seen, defended, "unknown-offer", ["d1"])
