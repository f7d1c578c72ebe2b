"""The demo's story, step by step. Every process, key, message and signature in it is real; only the machine is shared.

Ends every process it started, however it ends. Exit code 0 only if every promise held.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from aggregator.config import ConfigError
from aggregator.demo import forgery, report
from aggregator.demo.comparison import Comparison
from aggregator.demo.desk import replies_of
from aggregator.demo.fleet import Fleet, stop_orphaned_broker
from aggregator.demo.outcome import FEWEST_DEVICES, Forgery, Outcome, summary, wire_bytes
from aggregator.demo.play import KINDS, Play, Record, Rows, write_lines
from aggregator.demo.plays import play
from aggregator.demo.plots import metric_name
from aggregator.demo.processes import Children, DemoFailed
from aggregator.demo.screen import Screen
from aggregator.home import Home
from aggregator.tasks import TaskSpec, build_spec
from edge_sdk.protocol.secagg.client import masked_length, upload_bytes
from edge_sdk.protocol.secagg.committee import members_for, plan
from edge_sdk.protocol.secagg.ring import profile

MARK: Final = ".chorale-demo"
MOST_DEVICES: Final = 32
DEATHS_IN_ROUND: Final = 3
LEARN_S: Final = 900.0
ALL_INSTALLED_S: Final = 60.0
REFUSED_S: Final = 45.0
ANSWERS_S: Final = 60.0
DELTA: Final = 1e-5
LARGE: Final = 100_000
MAY_BE_MISSING: Final = 3  # of the devices in a sum: two are killed, and one may be late
RELEASES: Final = 10


@dataclass(slots=True)
class Story:
    """What the steps share."""

    report: Path
    fleet: Fleet
    screen: Screen
    play: Play
    rows: Rows
    spec: TaskSpec
    broker: str
    rng: random.Random
    outcome: Outcome

    @property
    def model_file(self) -> Path:
        return self.fleet.folder / "first.onnx"

    @property
    def held_out_file(self) -> Path:
        return self.fleet.folder / "held_out.jsonl"


def run(
    report_folder: Path,
    name: str = "churn",
    *,
    devices: int,
    rounds: int | None,
    broker: str,
    seed: int,
    comparison: bool = True,
) -> int:
    """Play the application of this name; the exit code. `rounds`: not given, as many as it needs.

    Raises DemoFailed or ConfigError where it could not be played.
    """
    played = play(name)
    rounds = played.rounds if rounds is None else rounds
    if not FEWEST_DEVICES <= devices <= MOST_DEVICES or rounds < 1:
        raise ConfigError("the demo wants 8 to 32 devices and at least one round", "see `aggregator demo --help`")
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _interrupt)
    folder = _fresh_folder(report_folder)
    rows = played.load(devices)
    outcome = Outcome(len(rows.parts), rounds, played)
    with Screen() as screen, Children(folder / "logs") as children:
        fleet = Fleet(folder, children, played)
        story = Story(
            report_folder,
            fleet,
            screen,
            played,
            rows,
            task_of(played, len(rows.parts), rounds),
            broker,
            random.Random(seed),  # noqa: S311 - chooses whom to kill
            outcome,
        )
        try:
            for step in STEPS if comparison else STEPS[:-1]:
                step(story)
        finally:
            children.stop_all()
            stop_orphaned_broker(fleet.home)
    outcome.seconds = time.monotonic() - began
    return _conclude(report_folder, screen, outcome)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _fresh_folder(report_folder: Path) -> Path:
    """An empty folder for this run. Removes that of an earlier run, and nothing that is not one."""
    folder = report_folder / "run"
    if folder.exists() and not (folder / MARK).exists():
        raise ConfigError(f"{folder} is not a demo's", "choose another folder with --report")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    (folder / MARK).touch()
    return folder


# -- the steps


def introduce(story: Story) -> None:
    """Say what is going to happen, on what data."""
    parts, records = story.rows.parts, story.play.records
    kinds = {kind: sum(part.kind == kind for part in parts) for kind in KINDS}
    trained = sum(len(part.records) for part in parts)
    story.screen.say(f"Data: {story.play.source}.")
    story.screen.say(
        f"{len(parts)} devices ({kinds['kiosk']} kiosks, {kinds['call-centre']} call-centre terminals) hold "
        f"{trained:,} {records} of their own {story.play.shares}; {len(story.rows.held_out):,} are held out and on no "
        "device."
    )


def make_fleet(story: Story) -> None:
    """Keys, certificate authority, release repository, settings; then the aggregator and its broker."""
    story.fleet.init(story.broker)
    story.outcome.broker = story.fleet.serve()
    story.screen.say(f"The aggregator runs; broker: {story.outcome.broker}, mutual TLS.")


def enrol_devices(story: Story) -> None:
    """A one-time token each, then a process each."""
    story.fleet.enrol(story.rows.parts)
    story.fleet.start_devices()
    story.screen.say(f"{len(story.fleet.devices)} device processes are enrolled and connected.")


def task_of(play: Play, devices: int, rounds: int) -> TaskSpec:
    """What the play asks for, and what all demos have in common. Raises TaskRefused."""
    fields = {
        "name": play.name,
        "rounds": rounds,
        "delta": DELTA,
        "n_min": max(5, devices - MAY_BE_MISSING),
        "n_max": 2 * devices,
        "window_s": 60,
        "opening_s": 30,
        "release_every": max(1, round(rounds / RELEASES)),
        # Noise moves the metric up and down: only a real loss holds a release back.
        "min_improvement": -0.05,
    }
    return build_spec(**(fields | play.task(devices, rounds)))


def create_task(story: Story) -> None:
    """The first model and the task: its graph is locked by the offline key, its sums by the fewest devices in them."""
    spec, count = story.spec, len(story.fleet.devices)
    story.model_file.write_bytes(story.play.model())
    write_lines(story.held_out_file, [_without(story.play.subject, record) for record in story.rows.held_out])
    task_file = story.fleet.folder / "task.json"
    task_file.write_bytes(msgspec.json.format(msgspec.json.encode(spec)) + b"\n")
    story.fleet.create_task(story.model_file, story.held_out_file, task_file)
    members = plan(members_for(count))
    story.screen.say(f"A round opens with at least {spec.n_min} devices; {members.answers} of {members.m} must answer.")
    ring = profile(spec.profile)
    story.outcome.weight_bytes = ring.coefficient_bytes
    story.outcome.upload_ratio_100k = wire_bytes(upload_bytes(ring, members, masked_length(LARGE))) / (4 * LARGE)


def _without(name: str, record: Record) -> Record:
    return {field: value for field, value in record.items() if field != name}


def learn(story: Story) -> None:
    """All rounds, two deaths on the way."""
    deadline = time.monotonic() + LEARN_S
    death = min(DEATHS_IN_ROUND, story.spec.rounds)
    while time.monotonic() < deadline:
        status = story.fleet.status()
        story.screen.show(status)
        task = status["tasks"][0]
        if task["status"] != "active":
            break
        rounds = task["rounds"]
        if rounds and task["rounds_done"] >= death - 1 and not story.outcome.killed_after_upload:
            _kill_two(story, rounds[-1])
        time.sleep(0.02 if task["rounds_done"] in (death - 2, death - 1) else 0.25)
    story.outcome.task = story.fleet.task()
    story.screen.still()
    if not story.outcome.rounds_shown:
        raise DemoFailed(f"no round was opened; the last one waits: {story.outcome.task['waiting']}")
    killed = {story.outcome.killed_while_training, story.outcome.killed_after_upload}
    after = [entry for entry in story.outcome.rounds_shown if entry["round"] == story.outcome.after_kill.get("round")]
    story.outcome.after_kill = after[0] if after else {}
    story.screen.say(f"Learned, though {' and '.join(sorted(killed - {''})) or 'nobody'} died on the way.")


def _kill_two(story: Story, entry: dict[str, Any]) -> None:
    """First one that still trains, then one whose upload is in: it sits on the committee and will not answer."""
    outcome, fleet = story.outcome, story.fleet
    entered = [device for device in entry["devices"] if device in fleet.living()]
    training = [device for device in fleet.living() if device not in entered]
    if not outcome.killed_while_training:
        if entry["phase"] in ("offered", "collecting") and training:
            outcome.killed_while_training = story.rng.choice(training)
            fleet.kill(outcome.killed_while_training)
            story.screen.say(f"round {entry['round']}: kill -9 {outcome.killed_while_training} while it trains")
    elif entered and entry["phase"] in ("collecting", "closed", "opening"):
        outcome.killed_after_upload = story.rng.choice(entered)
        fleet.kill(outcome.killed_after_upload)
        outcome.after_kill = {"round": entry["round"]}
        story.screen.say(f"round {entry['round']}: kill -9 {outcome.killed_after_upload}, whose upload is in")


def look_at_devices(story: Story) -> None:
    """Wait until every living device answers its customers from the newest release."""
    fleet, released = story.fleet, story.outcome.released

    def all_there() -> bool:
        story.outcome.models = fleet.answering_with()
        return all(sha256 == released for sha256 in story.outcome.models.values())

    fleet.until(all_there, ALL_INSTALLED_S, "every living device to predict with the new release")
    story.screen.say(
        f"All {len(story.outcome.models)} living devices predict with the signed release sha256 {released}."
    )


def forge(story: Story) -> None:
    """Offer two forged releases; each must be refused by a device, in words, and change nothing."""
    fleet, repository, now = story.fleet, Home(story.fleet.home).releases, time.time()
    model = released_model(story)
    with forgery.offered_by_a_stranger(repository, story.play.name, forgery.changed_weights(model), now):
        first = _refusal(story, "Changed weights, under metadata signed by a stranger's key")
    version = forgery.offer_with_stolen_keys(repository, story.play.name, forgery.new_graph(model), now)
    try:
        second = _refusal(story, "A new graph, signed with the real online keys (the graph is locked offline)")
        fleet.answered_again(ANSWERS_S)
    finally:
        forgery.withdraw(repository, story.play.name, version, time.time())
    unchanged = all(sha256 == story.outcome.released for sha256 in fleet.answering_with().values())
    story.outcome.forgeries = [replace(one, model_unchanged=unchanged) for one in (first, second)]
    story.screen.say(f"Every device {'still answers' if unchanged else 'DOES NOT answer'} from the signed release.")


def _refusal(story: Story, attack: str) -> Forgery:
    fleet, since = story.fleet, story.fleet.last_event()
    device, words = fleet.until(lambda: fleet.refused_update(since), REFUSED_S, "a device to refuse a forged release")
    story.screen.say(f"{attack}: refused by {device}: {words}")
    return Forgery(attack, device, words, refused=True, model_unchanged=False)


def publish_answers(story: Story) -> None:
    """Where the play has a desk: sign the operator's answers, and wait until one device has fetched them."""
    desk, fleet = story.play.desk, story.fleet
    if desk is None:
        return
    file = fleet.folder / "answers.json"
    file.write_bytes(msgspec.json.encode(desk.answers(released_model(story), story.rows)))
    version, device = fleet.publish_answers(file), story.rng.choice(fleet.living())
    fleet.until(lambda: fleet.holds_answers(device), ANSWERS_S, f"{device} to fetch the signed answers")
    story.outcome.desk_device = device
    story.screen.say(f"{device} holds version {version} of the operator's signed answers.")


def switch_off(story: Story) -> None:
    """End every process. What follows needs no fleet, and a device that answers now does so by itself."""
    story.fleet.switch_off()


def ask_the_desk(story: Story) -> None:
    """Where the play has a desk: what the device with the answers says to customers, all else being switched off."""
    desk, outcome = story.play.desk, story.outcome
    if desk is None:
        return
    questions = desk.questions(story.rows)
    outcome.replies = replies_of(questions, story.fleet.ask(outcome.desk_device, [each.text for each in questions]))
    alone = sum(one.by_itself for one in outcome.replies)
    story.screen.say(
        f"With aggregator and broker switched off, {outcome.desk_device} answers {alone} of {len(questions)} held-out "
        "questions by itself and hands the others over to a person."
    )


def compare(story: Story) -> None:
    """Every device alone, and one centre, with the same model and as many steps, without privacy and with the same."""
    story.screen.say("Training every device alone, and one centre, for comparison ...")
    outcome = story.outcome
    epsilon = outcome.task["privacy"]["epsilon"]
    files, seed = (story.model_file, story.held_out_file), story.rng.getrandbits(31)
    comparison = Comparison(story.play, story.spec, files, epsilon=epsilon, seed=seed)
    with ThreadPoolExecutor(2) as side_by_side:
        central = side_by_side.submit(comparison.central, story.rows.parts)
        outcome.alone = list(side_by_side.map(comparison.alone, story.rows.parts))
        outcome.central, outcome.central_private = central.result()


def show(story: Story) -> None:
    """What the released model does with held-out records."""
    desk = story.play.desk
    answered = [desk.picture(story.outcome.replies)] if desk else []
    story.outcome.pictures = [*answered, *story.play.pictures(released_model(story), story.rows)]


def released_model(story: Story) -> bytes:
    """The newest release."""
    return Home(story.fleet.home).checkpoint_file(story.outcome.released).read_bytes()


STEPS: Final[tuple[Callable[[Story], None], ...]] = (
    introduce,
    make_fleet,
    enrol_devices,
    create_task,
    learn,
    look_at_devices,
    forge,
    publish_answers,
    switch_off,
    ask_the_desk,
    show,
    compare,
)


def _conclude(report_folder: Path, screen: Screen, outcome: Outcome) -> int:
    """Write summary.json and the report, and say what held and what did not."""
    figures = summary(outcome)
    (report_folder / "summary.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    page = report_folder / "report.html"
    report.write(page, outcome)
    others = (
        f"; a device alone {outcome.local_mean:.3f} without privacy, {outcome.local_private_mean:.3f} with it; "
        f"a centre {outcome.central:.3f} without privacy, {outcome.central_private:.3f} with it"
    )
    name = metric_name(figures["metric_name"])
    words = f"{name} on held-out {outcome.play.records}: fleet {outcome.fleet_metric:.3f}"
    screen.say(f"{words}{others if outcome.compared else ''}.")
    screen.say(
        f"Upload, everything counted: {outcome.upload_ratio:.2f} of plain float32; "
        f"{outcome.upload_ratio_100k:.2f} for a model of 100,000 weights."
    )
    for sentence, held in outcome.checks():
        screen.say(f"  {'held' if held else 'DID NOT HOLD'}: {sentence}")
    screen.say(f"Report: {page}")
    screen.say(f"Figures: {report_folder / 'summary.json'} ({outcome.seconds:.0f} s)")
    return 0 if figures["ok"] else 1
