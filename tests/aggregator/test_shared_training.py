"""Six devices with customers of their own learn one model: real training, real noise, real rounds, noise shared."""

from __future__ import annotations

import os
from itertools import pairwise

import numpy as np
import pytest
from onehot_device import OneHotDevice
from small_fleet import FLEET, SmallFleet, add_device

from edge_sdk.privacy.charges import sigma_steps
from edge_sdk.privacy.protection import noise_share, quantised
from edge_sdk.protocol import codec, topics
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.secagg.keystream import Keystream
from edge_sdk.training.plans import training_plan
from edge_sdk.transport.interface import Callbacks

CUSTOMERS, EACH = 60, 3  # of one device
TRUTH = np.linspace(-1.5, 1.5, 12)


class LearningDevice(OneHotDevice):
    """Trains on examples of its own, labelled by one rule for all, and protects as a device does."""

    def learn_from(self, fleet: SmallFleet) -> None:
        rng = np.random.default_rng(self.index)
        self.home = fleet.home
        self.x = rng.normal(size=(CUSTOMERS * EACH, 12)).astype(np.float32)
        self.y = (self.x @ TRUTH > 0).astype(np.float32)
        self.subjects = np.arange(CUSTOMERS * EACH, dtype=np.int64) % CUSTOMERS

    def values(self, offer: Offer) -> np.ndarray:
        from edge_sdk.training.dp_sgd import train
        from edge_sdk.training.module import GraphModule

        terms, model = offer.privacy, self.home.checkpoint_file(offer.models[0].hex()).read_bytes()
        update = train(
            GraphModule(model), {"features": self.x}, self.y, plan=training_plan(terms, len(self.y)),
            key=os.urandom(32), on_step=lambda step, steps: None,
            subjects=self.subjects if terms.unit == "customer" else None,
        ).update  # fmt: skip
        noise = noise_share(terms, offer.length, Keystream(os.urandom(32)))
        assert noise is not None
        return quantised(terms, update, Keystream(os.urandom(32))) + noise


class LearningFleet(SmallFleet):
    """The whole aggregator, with devices that learn."""

    def add(self, name: str, index: int, key: bytes) -> LearningDevice:
        transport = self.broker.transport(name, topics.device_filters(FLEET, name))
        device = LearningDevice(name, FLEET, index, key, transport.publish)
        device.learn_from(self)
        transport.start(Callbacks(on_message=device.receive))
        add_device(self.service.registry, device)
        return device

    def loss(self, sha256: str) -> float:
        """Of a checkpoint, over all devices' examples."""
        import torch

        from edge_sdk.training.dp_sgd import loss_sum
        from edge_sdk.training.module import GraphModule

        module = GraphModule(self.home.checkpoint_file(sha256).read_bytes())
        x, y = (np.concatenate([getattr(device, name) for device in self.devices]) for name in "xy")
        with torch.no_grad():
            logits = module({"features": torch.from_numpy(x)})
            return float(loss_sum(module.loss_name, logits, torch.from_numpy(y))) / len(y)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["customer", "record"])
def test_the_loss_falls_over_rounds_of_shared_noise(tmp_path, unit):
    fleet, rounds = LearningFleet(tmp_path / "home"), 8
    fleet.task(
        heldout=False, unit=unit, placement="shared", n_min=6, rounds=rounds, noise_multiplier=2.0, sample_rate=0.5,
        units_per_device=CUSTOMERS if unit == "customer" else CUSTOMERS * EACH, per_customer=EACH, learning_rate=2.0,
    )  # fmt: skip
    fleet.hello_all()
    fleet.run(lambda: fleet.service.store.task("churn").status == "done")
    store = fleet.service.store
    assert [row.phase for row in fleet.rounds()] == ["released"] * rounds
    offer = codec.unpack(store.round("churn", 1).frame[68:], Offer)
    assert (offer.privacy.unit, offer.privacy.placement, offer.privacy.steps) == (unit, "shared", 1)
    assert sigma_steps(offer.privacy) > 0
    losses = [fleet.loss(offer.models[0].hex())] + [
        fleet.loss(store.checkpoint("churn", number)[0]) for number in range(1, rounds + 1)
    ]
    assert losses[-1] < 0.6 * losses[0]
    assert sum(later < earlier for earlier, later in pairwise(losses)) >= rounds - 2
    assert fleet.rounds()[-1].stats["epsilon"] > 0
