"""How the mean update of a round moves the model: server optimizers and their decay. Pure numpy.

FedAvg (McMahan et al. 2017), momentum on the server (FedAvgM: Hsu, Qi and Brown 2019), FedAdam and FedYogi (Reddi et
al. 2021, Adaptive Federated Optimization, algorithm 2: no bias correction, squares begin at tau^2). What they see is
the opened sum alone, so they cost no privacy. Refuses a state that is not this optimizer's own for this model.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from aggregator.errors import ModelRefused

if TYPE_CHECKING:
    from aggregator.tasks import TaskSpec

Rule = Literal["fedavg", "momentum", "adam", "yogi"]
Decay = Literal["none", "linear", "cosine"]
Floats = npt.NDArray[np.float64]

_MAGIC: Final = b"CHO1"
_HEADER: Final = struct.Struct("<4s8sQQ")  # magic, rule, rounds that moved the model, coordinates
_KEPT: Final[dict[Rule, int]] = {"fedavg": 0, "momentum": 1, "adam": 2, "yogi": 2}  # vectors


class Optimizer(NamedTuple):
    """A rule and its numbers. `learning_rate` is multiplied by `decay` over `rounds`.

    `momentum`: share of the last direction that is kept (beta 1 of adam and yogi); `beta2`: the same of the squares.
    `tau`: adam and yogi divide by root of squares + tau, so that a coordinate that changes by less moves little.
    """

    name: Rule = "fedavg"
    learning_rate: float = 1.0
    momentum: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    decay: Decay = "none"
    rounds: int = 1

    @property
    def stateless(self) -> bool:
        """Does nothing of earlier rounds matter?"""
        return self.name == "fedavg" and self.decay == "none"


class State(NamedTuple):
    """`done`: rounds that moved the model. `direction`, `squares`: float64 [d], empty where the rule keeps none."""

    done: int
    direction: Floats
    squares: Floats


def of(spec: TaskSpec) -> Optimizer:
    """The optimizer that a task describes."""
    return Optimizer(
        spec.server_optimizer,
        spec.server_learning_rate,
        spec.server_momentum,
        spec.server_beta2,
        spec.server_tau,
        spec.server_decay,
        spec.rounds,
    )


def plain(spec: TaskSpec) -> Optimizer:
    """What a group's mean alone is judged by: one plain step, whatever came before it."""
    return Optimizer("fedavg", spec.server_learning_rate if spec.server_optimizer == "fedavg" else 1.0)


def first(optimizer: Optimizer, length: int) -> State:
    """The state before the first round, for `length` coordinates."""
    kept = _KEPT[optimizer.name]
    direction = np.zeros(length if kept > 0 else 0)
    return State(0, direction, np.full(length if kept > 1 else 0, optimizer.tau**2))


def step(optimizer: Optimizer, state: State, change: Floats) -> tuple[State, Floats]:
    """The next state, and what is added to the weights [d]. `change` [d]: the mean change of the weights (Delta)."""
    rate = optimizer.learning_rate * _decayed(optimizer, state.done)
    if optimizer.name == "fedavg":
        return state._replace(done=state.done + 1), rate * change
    if optimizer.name == "momentum":
        direction = optimizer.momentum * state.direction + change
        return State(state.done + 1, direction, state.squares), rate * direction
    direction = optimizer.momentum * state.direction + (1 - optimizer.momentum) * change
    squares = _squares(optimizer, state.squares, np.square(change))
    return State(state.done + 1, direction, squares), rate * direction / (np.sqrt(squares) + optimizer.tau)


def _squares(optimizer: Optimizer, before: Floats, now: Floats) -> Floats:
    if optimizer.name == "adam":
        return optimizer.beta2 * before + (1 - optimizer.beta2) * now
    return before - (1 - optimizer.beta2) * now * np.sign(before - now)


def _decayed(optimizer: Optimizer, done: int) -> float:
    """1 in the first round; falls towards 0, which the round after the last would have."""
    over = min(1.0, done / max(1, optimizer.rounds))
    if optimizer.decay == "linear":
        return 1.0 - over
    return (1 + math.cos(math.pi * over)) / 2 if optimizer.decay == "cosine" else 1.0


def written(optimizer: Optimizer, state: State) -> bytes:
    """The state as bytes: a header, then its vectors as little-endian float64; empty where the rule keeps nothing.

    Raises ModelRefused where it is not finite.
    """
    if optimizer.stateless:
        return b""
    vectors = (state.direction, state.squares)[: _KEPT[optimizer.name]]
    if not all(np.isfinite(vector).all() for vector in vectors):
        raise ModelRefused("the server optimizer's state is not finite", "lower the rate", reason="not-finite")
    length = len(state.direction)
    header = _HEADER.pack(_MAGIC, optimizer.name.encode(), state.done, length)
    return header + b"".join(vector.astype("<f8").tobytes() for vector in vectors)


def read(optimizer: Optimizer, data: bytes, length: int) -> State:
    """What `written` gave for this rule and `length` coordinates; empty: the first state. Raises ModelRefused."""
    if not data:
        return first(optimizer, length)
    kept = _KEPT[optimizer.name]
    wanted = length if kept else 0
    head = _HEADER.unpack(data[: _HEADER.size]) if len(data) >= _HEADER.size else (b"", b"", 0, 0)
    if head[:2] != (_MAGIC, optimizer.name.encode().ljust(8, b"\0")) or head[3] != wanted:
        raise _wrong(optimizer)
    if len(data) != _HEADER.size + 8 * kept * wanted:
        raise _wrong(optimizer)
    vectors = np.frombuffer(data, "<f8", offset=_HEADER.size).astype(np.float64)
    if not np.isfinite(vectors).all():
        raise _wrong(optimizer)
    direction, squares = vectors[:wanted], vectors[wanted:] if kept > 1 else np.empty(0)
    return State(head[2], direction, squares)


def _wrong(optimizer: Optimizer) -> ModelRefused:
    hint = "put the file back as it was written, from a backup"
    return ModelRefused(f"this is no state of the server optimizer {optimizer.name}", hint, reason="optimizer")
