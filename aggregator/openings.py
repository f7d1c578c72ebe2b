"""The openings under way: which groups of a closed round are opened, what members are asked, what their answers give.

All of it follows from the tables, so it is the same after a restart. Decides nothing about the round; refuses what
`opening_requests` refuses.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any, NamedTuple

from aggregator import opening_requests
from aggregator.grouping import Grouping
from aggregator.ingest import Ingest
from aggregator.opening_requests import UNREADABLE, OpenedGroup
from aggregator.round_terms import RoundTerms
from aggregator.server_round import Round
from aggregator.store import audit_log
from aggregator.store.store import Store
from edge_sdk.protocol.messages import OpeningNotice, Share

Name = tuple[str, int]


class Asked(NamedTuple):
    """The request and the notice of every member, in order."""

    blobs: list[bytes]
    notices: list[OpeningNotice]


class Openings:
    """The openings of every closed round, by (task, round)."""

    def __init__(self, store: Store, ingest: Ingest) -> None:
        self._store, self._ingest = store, ingest
        self._groups: dict[Name, list[tuple[int, tuple[str, ...]]]] = {}
        self._asked: dict[Name, Asked] = {}

    def groups(self, terms: RoundTerms, grouping: Grouping) -> list[tuple[str, ...]]:
        """The devices of each group that is opened. Only of a closed round: who is in it must not change."""
        return [devices for _, devices in self._opened(terms.name, grouping)]

    def _opened(self, name: Name, grouping: Grouping) -> list[tuple[int, tuple[str, ...]]]:
        """Each group to be opened and its devices in order."""
        if name not in self._groups:
            members = self._store.members(*name)
            self._groups[name] = [
                (group, tuple(device for device in members if members[device] == group))
                for group in grouping.opened(Counter(members.values()))
            ]
        return self._groups[name]

    def asked(self, terms: RoundTerms, grouping: Grouping) -> Asked:
        """What every member is asked."""
        name = terms.name
        if name not in self._asked:
            uploads, groups = self._store.uploads(*name, "summed"), self.groups(terms, grouping)
            blobs = opening_requests.requests_for(terms, uploads, groups)
            notices = [OpeningNotice(*name, len(blob), hashlib.sha256(blob).digest()) for blob in blobs]
            self._asked[name] = Asked(blobs, notices)
        return self._asked[name]

    def read_answer(self, terms: RoundTerms, grouping: Grouping, device: str, share: Share) -> tuple[int, bytes]:
        """The member (from 1) and the canonical answer. Raises RemoteProtocolError."""
        return opening_requests.read_answer(terms, device, share, self.groups(terms, grouping))

    def open(self, terms: RoundTerms, grouping: Grouping, state: Round) -> tuple[list[OpenedGroup], str]:
        """Every group as the answers give it; and why to wait for more of them or give up, "" where the groups stand.

        SPEC 7.5.1: with an answer to spare that agrees, canaries that do not hold are the uploads' fault.
        """
        sums, answers = self._ingest.close_round(*terms.name), self._store.answers(*terms.name)
        totals = (sums[group].total for group, _ in self._opened(terms.name, grouping))
        opened = list(opening_requests.open_sums(terms, self.groups(terms, grouping), answers, totals))
        failed = [group.reason for group in opened if group.total is None]
        told = {UNREADABLE} | ({"canaries"} if len(answers) > state.needed else set())
        wait = len(failed) == len(opened) or (not state.heard_all and set(failed) - told)
        return opened, failed[0] if wait else ""

    def say_wrong(self, terms: RoundTerms, opened: list[OpenedGroup], reasons: list[str], now: float) -> None:
        """Tell the operator which members answered wrongly and which groups are left out, with the devices in them."""
        if wrong := sorted({member for group in opened for member in group.wrong_members}):
            members = [terms.offer.secagg.committee[member - 1] for member in wrong]
            self._alarm(now, "wrong-answers", terms.name, {"members": wrong}, members=members)
        for index, (group, reason) in enumerate(zip(opened, reasons, strict=True)):
            if reason:
                devices = list(group.devices)
                said = {"group": index, "reason": reason, "devices": devices}
                self._store.count_refusals({("group", reason.split(":")[0]): 1})
                self._alarm(now, "group-left-out", terms.name, said, why=reason[:300], devices=devices)

    def _alarm(self, now: float, kind: str, name: Name, said: dict[str, Any], **audited: Any) -> None:
        with self._store.transaction():
            self._store.log(now, kind, *name, **said)
            audit_log.append(self._store.connection, now, "alarm", *name, reason=kind, **audited)

    def forget(self, name: Name) -> None:
        """The round is over."""
        self._groups.pop(name, None)
        self._asked.pop(name, None)
