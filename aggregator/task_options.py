"""`aggregator task create` and `task plan`. Every option not given keeps the task's default.

Locks the graph with the offline key after every check and before any device hears of the task. Refuses whatever
`aggregator.tasks` refuses, and to lock anything for a name that has a task: its devices would refuse what runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
from msgspec.structs import replace

from aggregator import setup, status, task_terms, tasks
from aggregator.about import read_about
from aggregator.config import Config, ConfigError
from aggregator.errors import TaskRefused
from aggregator.evaluation import usual_metric
from aggregator.home import Home
from aggregator.recording import recorded
from aggregator.releases.durable import exclusive
from aggregator.releases.keys import open_targets_key
from aggregator.releases.repository import Repository
from aggregator.task_warnings import warnings
from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.privacy import charges, statement
from edge_sdk.protocol.messages import Placement, PrivacyTerms, Unit

SPACE: Final = 4  # a locked graph's file may grow so many times: metadata changes from round to round

# (flag, field of TaskSpec, type, what it is)
OPTIONS: Final[tuple[tuple[str, str, type, str], ...]] = (
    ("--rounds", "rounds", int, "how many rounds (default: 10)"),
    ("--unit", "unit", str, "whom the noise protects: record, customer or device (default: record)"),
    ("--placement", "placement", str, "noise local or shared (default: shared for devices, else local)"),
    ("--per-customer", "per_customer", int, "customer unit: most examples of one in a step (default: 32)"),
    ("--consent", "consent", int, "version of the notice that customers must have agreed to (default: 0, none)"),
    ("--epsilon", "target_epsilon", float, "privacy after all rounds; the noise follows from it"),
    ("--noise-multiplier", "noise_multiplier", float, "the noise itself, instead of --epsilon"),
    ("--max-epsilon", "max_epsilon", float, "the task ends before a round would exceed it (default: --epsilon)"),
    ("--honest-share", "honest_share", float, "part of n-min taken to add its share of shared noise (default: 0.8)"),
    ("--delta", "delta", float, "probability that epsilon may fail (default: 1e-5)"),
    ("--n-min", "n_min", int, "fewest devices in a sum (default: 5)"),
    ("--n-max", "n_max", int, "most devices in a sum (default: 1000)"),
    ("--window", "window_s", int, "seconds that a round collects (default: 600)"),
    ("--opening", "opening_s", int, "seconds that the committee has (default: 300)"),
    ("--pause", "pause_s", float, "seconds between rounds (default: 0)"),
    ("--clip", "clip", float, "L2 bound of what a device uploads (default: 1; shared sums: what fits a batch)"),
    ("--max-grad-norm", "max_grad_norm", float, "L2 bound of one unit's gradient (default: 1)"),
    ("--sample-rate", "sample_rate", float, "share of its records that a device draws a step (default: 0.1)"),
    ("--units-per-device", "units_per_device", int, "a round guess: it fixes each step's divisor (default: 500)"),
    ("--steps", "steps", int, "steps a round on the device (default: 10; shared sums: 1)"),
    ("--learning-rate", "learning_rate", float, "on the device (default: 0.1)"),
    ("--proximal", "proximal", float, "pull of every local step to the offered weights, FedProx (default: 0)"),
    ("--weight-bound", "weight_bound", int, "device unit: count min(examples, bound) / bound (default: 0, all alike)"),
    ("--server-optimizer", "server_optimizer", str, "fedavg, momentum, adam or yogi (default: fedavg)"),
    ("--server-learning-rate", "server_learning_rate", float, "of the mean update (default: 1; adam, yogi: below 0.1)"),
    ("--server-momentum", "server_momentum", float, "share kept of the round before (default: 0.9)"),
    ("--server-beta2", "server_beta2", float, "adam, yogi: share kept of the squares (default: 0.99)"),
    ("--server-tau", "server_tau", float, "adam, yogi: changes below it stay small (default: 0.001)"),
    ("--server-decay", "server_decay", str, "of the server's rate over all rounds: none, linear, cosine"),
    ("--buffer", "buffer", int, "close a round as soon as so many uploads are in (default: 0, with its window)"),
    ("--accept-models", "accept_models", int, "take updates trained on so many last checkpoints (default: 1)"),
    ("--metric", "metric", str, f"{', '.join(get_args(tasks.Metric))} (default: by the label)"),
    ("--min-improvement", "min_improvement", float, "over the last release; may be negative (default: 0)"),
    ("--release-every", "release_every", int, "rounds between releases (default: 1)"),
    ("--groups", "groups", int, "sums a round opens, each of at least --n-min devices (default: 1)"),
    ("--robust", "robust", str, "mean, median or trimmed_mean of the groups (default: mean)"),
    ("--trim", "trim", float, "share of the groups that a trimmed mean cuts off at either end (default: 0.2)"),
    ("--profile", "profile", str, "secure aggregation: P16, P24 or P32 (default: P24)"),
)


SWITCHES: Final = ("stewards", "group_gate", "insecure_without_noise", "accept_little_signal")
COMBINATIONS: Final[tuple[tuple[Unit, Placement], ...]] = (
    ("record", "local"),
    ("record", "shared"),
    ("customer", "local"),
    ("customer", "shared"),
    ("device", "local"),
    ("device", "shared"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of OPTIONS and the switches."""
    for flag, field, kind, text in OPTIONS:
        parser.add_argument(flag, dest=field, type=kind, help=text)
    parser.add_argument("--spec", metavar="FILE", help="the whole task as JSON; every option given here overrides it")
    parser.add_argument("--stewards", action="store_true", help="only stewards sit on the committee")
    parser.add_argument("--group-gate", action="store_true", help="leave out a group that alone spoils the metric")
    parser.add_argument("--insecure-without-noise", action="store_true", help="for data that is not personal")
    parser.add_argument("--accept-little-signal", action="store_true", help="go on though noise drowns the signal")


def create(home: Path, config: Config, chosen: argparse.Namespace, *, now: float) -> dict[str, Any]:
    """Check, lock the graph, add the task. Raises TaskRefused, ModelRefused, HomeRefused, ConfigError, ReleaseError."""
    model = _read_model(Path(chosen.model))
    spec = _spec(chosen, model)
    if chosen.about:
        spec = replace(spec, about=read_about(Path(chosen.about)))
    held_out = Path(chosen.held_out) if chosen.held_out else None
    # One at a time: a second command for the same name must find the task, not lock another graph under it.
    with exclusive(home / "task-create.lock"), recorded(home, config) as (store, _):
        checked = tasks.check_task(store, spec, model=model, heldout=held_out)
        _lock(home, chosen, model, now)
        sha256 = tasks.create_task(store, Home(home), spec, model=model, heldout=held_out, now=now)
    privacy = status.privacy(checked.terms, checked.length, spec.rounds, spec.n_min)
    made = {"name": spec.name, "sha256": sha256, "rounds": spec.rounds, "coordinates": checked.length}
    warned = warnings(spec, checked.terms, checked.length, tasks.model_schema(model))
    return {**made, "privacy": privacy, "warnings": warned}


def _spec(chosen: argparse.Namespace, model: bytes) -> tasks.TaskSpec:
    """What is given, over what the task file says, over the metric that the model's label usually has."""
    given = {field: getattr(chosen, field) for _, field, _, _ in OPTIONS if getattr(chosen, field) is not None}
    given |= {name: True for name in SWITCHES if getattr(chosen, name)}
    fields = _read_spec(Path(chosen.spec)) if chosen.spec else {}
    for one, other in (("target_epsilon", "noise_multiplier"), ("noise_multiplier", "target_epsilon")):
        if one in given:
            fields.pop(other, None)  # the option says it instead
    if "metric" not in {**fields, **given}:
        given["metric"] = usual_metric(tasks.model_schema(model).label)
    return tasks.build_spec(**{**fields, **given, "name": chosen.name})


def _read_spec(path: Path) -> dict[str, Any]:
    """The fields of a task file. What they mean, `build_spec` checks. Raises ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        hint = 'give a JSON object of task settings, for example {"rounds": 20, "target_epsilon": 4.0}'
        raise ConfigError(f"cannot read the task file {path}: {error}", hint) from error


def described(spec: tasks.TaskSpec) -> list[str]:
    """Every setting of a task but what people say of it, one a line; a * where it is not the default."""
    fields = msgspec.structs.fields(spec)
    shown = [field for field in fields if field.name != "about"]
    values = [(field.name, getattr(spec, field.name), field.default) for field in shown]
    return [f"{'*' if value != default else ' '} {name}: {_word(value)}" for name, value, default in values]


def _word(value: object) -> str:
    if value is None:
        return "not given"
    return f"{value:g}" if isinstance(value, float) else str(value)


def plan(chosen: argparse.Namespace) -> dict[str, Any]:
    """What `create` would settle, and the same wish for every other unit and placement. Writes and signs nothing.

    Raises TaskRefused, ConfigError.
    """
    model = _read_model(Path(chosen.model))
    spec = _spec(chosen, model)
    length = tasks.model_length(model)
    terms = tasks.settle(spec, length)
    settled = _settled(spec, terms, length)
    others = []
    for unit, placement in COMBINATIONS:
        if (unit, placement) != (spec.unit, task_terms.placement_of(spec)):
            other = replace(spec, unit=unit, placement=placement, clip=None, step=None, steps=None)
            try:
                figures = _settled(other, tasks.settle(other, length), length)
                others.append({"unit": unit, "placement": placement, **figures})
            except TaskRefused as error:
                others.append({"unit": unit, "placement": placement, "refused": str(error), "hint": error.hint})
    warned = warnings(spec, terms, length, tasks.model_schema(model))
    return {"name": spec.name, "coordinates": length, **settled, "warnings": warned, "others": others}


def _settled(spec: tasks.TaskSpec, terms: PrivacyTerms, length: int) -> dict[str, Any]:
    return {
        "noise_multiplier": round(terms.noise_multiplier, 4),
        "clip": terms.clip,
        "step": terms.step,
        "steps": terms.steps,
        "device_noise_in_steps": round(charges.sigma_steps(terms), 1),
        "headroom_used": round(task_terms.headroom(spec, terms), 4),
        "noise_over_signal": round(charges.noise_over_signal(terms, length, spec.rounds, spec.n_min), 3),
        "privacy": status.privacy(terms, length, spec.rounds, spec.n_min),
    }


def plan_lines(planned: dict[str, Any], language: statement.Language) -> list[str]:
    """The plan for people: the task as wished, then what every other unit and placement would take."""
    suffix = "_zh" if language == "zh" else ""
    privacy = planned["privacy"]
    text = [privacy[f"sentence{suffix}"], *(f"  {one}" for one in privacy[f"assumptions{suffix}"])]
    text.append(f"{planned['coordinates']} coordinates: {_figures(planned)}")
    for other in planned["others"]:
        said = f"refused: {other['refused']} ({other['hint']})" if "refused" in other else _figures(other)
        text.append(f"{other['unit']}, {other['placement']} noise: {said}")
    return text


def _figures(settled: dict[str, Any]) -> str:
    return (
        f"noise multiplier {settled['noise_multiplier']:g}, clip {settled['clip']:.4g}, step {settled['step']:.4g}, "
        f"{settled['headroom_used']:.0%} of the modulus used, noise {settled['noise_over_signal']:g} times the most "
        "that the rounds can learn"
    )


def _read_model(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"cannot read the model {path}: {error.strerror}"
        raise ConfigError(what, "give an ONNX file with --model") from error


def _lock(home: Path, chosen: argparse.Namespace, model: bytes, now: float) -> None:
    """Sign the graph's digest with the offline key: later releases may change weights and nothing else."""
    offline = Path(chosen.offline) if chosen.offline else setup.offline_directory(home)
    key = open_targets_key(offline, setup.read_passphrase(offline, chosen.passphrase_file))
    repository = Repository(Home(home).releases)
    repository.lock_graph(chosen.name, graph_digest(model).hex(), SPACE * len(model) + 65_536, key, now)
