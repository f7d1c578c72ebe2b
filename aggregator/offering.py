"""What goes into a round's offer: the roster in force, the committee that follows from it, the task's terms.

Issues a new roster only while no round is taking uploads: devices refuse an epoch below the highest they have seen.
Where one is due, no further round begins until those have ended: else two tasks in turn would put it off for ever.
Changed epoch keys alone bring a new roster at most once an hour: every roster draws the committee anew, and no device
may ask for draws until it likes one. For a day they keep no round from beginning: every device changes its key daily,
and the roster in force holds. Refuses, with TaskRefused, a round for which the fleet is too small or not enough devices
are live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from aggregator import analytics, cohort, grouping, tasks
from aggregator.errors import TaskRefused
from aggregator.fleet.registry import ROSTER_TTL_S, Registry
from aggregator.releasing import Releases
from aggregator.store.rows import TaskRow
from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.artifact.weights import read_vector
from edge_sdk.protocol.codec import PREFIX_BYTES, SIGNATURE_BYTES, offer_hash, pack, unpack
from edge_sdk.protocol.messages import Offer, PrivacyTerms, SecAggTerms
from edge_sdk.protocol.roster import RosterEntry, SignedRoster, Statement
from edge_sdk.protocol.sealing import ROUND_SECRET_BYTES, RoundKey
from edge_sdk.protocol.secagg.committee import plan
from edge_sdk.protocol.secagg.groups import groups_of
from edge_sdk.protocol.secagg.ring import profile

BEACON_BYTES: Final = 32
PATIENCE_S: Final = 86_400  # so long changed keys wait for open rounds to end before further rounds wait for them
BUFFERED_S: Final = 5 * 86_400  # a buffered round ends after so long, while the roster it was offered under holds
DRAWS: Final = 32  # round keys tried for a number of groups before fewer are
REKEY_S: Final = 3600  # changed keys wait this long after the last roster; a device that comes or goes does not


class Offering:
    """Makes offers; keeps nothing but the settled terms of each task, and since when changed keys wait for a roster."""

    def __init__(
        self, registry: Registry, releases: Releases, roster_key: Ed25519PrivateKey, entropy: Callable[[int], bytes]
    ) -> None:
        self._registry, self._releases, self._roster_key, self._entropy = registry, releases, roster_key, entropy
        self._settled: dict[str, tuple[int, PrivacyTerms]] = {}
        self._rekey_since: float | None = None

    def __repr__(self) -> str:
        return "Offering(...)"

    def roster(self, now: float, until: float, *, may_issue: bool) -> SignedRoster:
        """The roster in force until then, signed anew where the fleet changed or it nears its end.

        Raises TaskRefused "roster-due" where it should be and `may_issue` says that a round is taking uploads.
        """
        current = self._registry.signed_roster()
        wanted = self._registry.entries()
        if not wanted:
            raise TaskRefused("no device is enrolled", "enrol devices: `aggregator enroll-token`", reason="no-devices")
        if current is not None and _good(current, wanted, now, until):
            self._rekey_since = None
            return current
        if current is not None and not may_issue:
            return self._meanwhile(current, wanted, now, until)
        self._rekey_since = None
        return self._registry.issue_roster(self._roster_key, now=now, beacon=lambda: self._entropy(BEACON_BYTES))

    def members_changed(self) -> bool:
        """Do devices wait for a roster that names them, or is one named that is gone?"""
        current = self._registry.signed_roster()
        return current is not None and _members(current.entries) != _members(self._registry.entries())

    def _meanwhile(
        self, current: SignedRoster, wanted: tuple[RosterEntry, ...], now: float, until: float
    ) -> SignedRoster:
        """The roster while one is due and none may be signed: the old one where it lacks keys alone, for a day."""
        what = "devices came or went, or the roster nears its end"
        if _holds(current, wanted, now, until):
            since = self._rekey_since = now if self._rekey_since is None else min(self._rekey_since, now)
            if now - since < PATIENCE_S:
                return current
            what = f"devices changed their keys {int(now - since)} s ago"
        what += ": the rounds that are open end first, then a new roster is signed"
        raise TaskRefused(what, "wait for the end of their windows", reason="roster-due")

    def offer(
        self,
        task: TaskRow,
        number: int,
        now: float,
        live: frozenset[str],
        *,
        may_issue: bool,
        question: analytics.Question | None = None,
    ) -> tuple[Offer, bytes, SignedRoster]:
        """The next round's offer, the secret of its key, and its roster. Raises TaskRefused: what is waited for.

        With a `question` the round asks that in place of training, of one group, by terms of its own.
        """
        spec = self._releases.spec(task)
        window_s = BUFFERED_S if spec.buffer and question is None else spec.window_s
        roster = self.roster(now, now + window_s + spec.opening_s, may_issue=may_issue)
        needed = spec.n_min * (1 if question else tasks.fewest_groups(spec))
        cohort.check_fleet(roster.entries, needed, spec.stewards)
        here = live & {entry.device for entry in roster.entries}
        if len(here) < needed:
            hint = "start the devices, or see `aggregator devices`"
            raise TaskRefused(f"{len(here)} of at least {needed} devices are live", hint, reason="not-live")
        model = self._releases.model(task.checkpoint)
        self._releases.optimizer_state(task, task.checkpoint)  # before anybody trains for a sum that could not be used
        length, privacy = analytics.settle(spec, question) if question else self._terms(task, model)
        secret = self._entropy(ROUND_SECRET_BYTES)
        offer = Offer(
            fleet=unpack(roster.statement, Statement).fleet,
            task=task.name,
            round=number,
            issued_at=int(now),
            closes_at=int(now) + window_s,
            models=tuple(map(bytes.fromhex, self._releases.lineage(task, spec.accept_models))),
            model_bytes=len(model),
            graph_digest=graph_digest(model),
            length=length,
            secagg=_cohort(spec, roster, analytics.PROFILE if question else spec.profile),
            privacy=privacy,
            consent=spec.consent,
            round_key=RoundKey(secret).public_bytes(),
            query=question.query if question else None,
        )
        if spec.groups > 1 and question is None:
            offer, secret = self._grouped(spec, offer, secret, [entry.device for entry in roster.entries], here)
        return offer, secret, roster

    def _grouped(
        self, spec: tasks.TaskSpec, offer: Offer, secret: bytes, names: list[str], live: frozenset[str]
    ) -> tuple[Offer, bytes]:
        """The offer with as many groups as the live devices fill, and the secret of its round key.

        Who is in which follows from the offer's hash: another round key is drawn until every group can fill. Drawing
        gains an aggregator nothing (SPEC 7.5.1). Raises TaskRefused where too few groups fill.
        """
        most = grouping.most_groups(profile(spec.profile), plan(len(offer.secagg.committee)))
        fewest = tasks.fewest_groups(spec)
        count = grouping.how_many(spec.groups, fewest, spec.n_min, len(live), most)
        while True:
            for _ in range(DRAWS):
                drawn = replace(offer, secagg=replace(offer.secagg, groups=count))
                digest = offer_hash(bytes(PREFIX_BYTES + SIGNATURE_BYTES) + pack(drawn))
                if grouping.fills(groups_of(digest, names, count), live, count, spec.n_min):
                    return drawn, secret
                secret = self._entropy(ROUND_SECRET_BYTES)
                offer = replace(offer, round_key=RoundKey(secret).public_bytes())
            if count == fewest:
                what = f"{len(live)} live of {len(names)} devices do not fill {fewest} groups of {spec.n_min}"
                raise TaskRefused(what, "start more devices, or lower n_min", reason="not-live")
            count = max(fewest, 4 * count // 5)

    def _terms(self, task: TaskRow, model: bytes) -> tuple[int, PrivacyTerms]:
        length = int(read_vector(model).size)
        if self._settled.get(task.name, (0,))[0] != length:  # new, or its label list grew
            self._settled[task.name] = (length, tasks.settle(self._releases.spec(task), length))
        return self._settled[task.name]


def _cohort(spec: tasks.TaskSpec, roster: SignedRoster, profile_name: Literal["P16", "P24", "P32"]) -> SecAggTerms:
    """One group; the committee that follows from the roster."""
    return SecAggTerms(
        profile=profile_name,
        n_min=spec.n_min,
        n_max=spec.n_max,
        epoch=epoch_of(roster),
        statement_hash=hashlib.sha256(roster.statement).digest(),
        stewards=spec.stewards,
        committee=cohort.committee_of(roster.statement, roster.entries, spec.stewards),
        groups=1,
    )


def epoch_of(roster: SignedRoster) -> int:
    """The epoch that a signed roster states."""
    return unpack(roster.statement, Statement).epoch


def _good(current: SignedRoster, wanted: tuple[RosterEntry, ...], now: float, until: float) -> bool:
    """The roster names exactly these devices, their keys or recent ones, and two thirds of its life are not over."""
    issued_at = unpack(current.statement, Statement).issued_at
    return _holds(current, wanted, now, until) and (current.entries == wanted or 0 <= now - issued_at < REKEY_S)


def _holds(current: SignedRoster, wanted: tuple[RosterEntry, ...], now: float, until: float) -> bool:
    """The same, whatever epoch keys the devices have."""
    expires_at = unpack(current.statement, Statement).expires_at
    return max(until, now + ROSTER_TTL_S / 3) <= expires_at and _members(current.entries) == _members(wanted)


def _members(entries: tuple[RosterEntry, ...]) -> list[tuple[str, bytes, bool]]:
    return [(entry.device, entry.sign_key, entry.steward) for entry in entries]
