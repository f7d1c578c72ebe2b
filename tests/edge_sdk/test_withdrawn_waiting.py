"""Who withdraws while examples still wait for their task's schema is not learnt from, not even after a new consent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fleet_of_eight import NOW, SCHEMA, TASK

from edge_sdk.artifact.schema import Schema
from edge_sdk.config import Config
from edge_sdk.consent import EVERY_TASK
from edge_sdk.recorder import Recorder, open_examples
from edge_sdk.surroundings import Live


@pytest.mark.parametrize(("purpose", "left"), [(TASK, 1), (EVERY_TASK, 1), ("another", 2)])
def test_what_waits_leaves_with_the_withdrawal(tmp_path: Path, purpose: str, left: int) -> None:
    known: dict[str, Schema] = {}
    config, live = Config(home=tmp_path), Live()
    recorder = Recorder(config, open_examples(config, os.urandom), lambda: known, live)
    fields = {"minutes": 90.0, "calls": 2.0}
    recorder.take([(TASK, fields, "yes", "anna", 3), (TASK, fields, "no", "bert", 3)], NOW)
    recorder.withdraw("anna", (purpose,), NOW + 1)
    assert live.waiting == left
    recorder.give("anna", 3, (EVERY_TASK,), NOW + 2)
    known[TASK] = SCHEMA
    recorder.turn(1.0, NOW + 3, NOW)
    assert len(recorder.examples.held("anna")) == left - 1
    assert len(recorder.examples.held("bert")) == 1
    recorder.close()
