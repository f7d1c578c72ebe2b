"""A small fleet whose devices answer queries from records of their own, by the code of the real device."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from onehot_device import OneHotDevice
from small_fleet import FLEET, SCHEMA, SmallFleet, add_device, first_model

from edge_sdk.asked_round import answer
from edge_sdk.examples_store import Example
from edge_sdk.privacy.protection import noise_share, quantised
from edge_sdk.protocol import topics
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.secagg.keystream import Keystream
from edge_sdk.transport.interface import Callbacks

EACH = 90  # records of one device, of 30 customers in turn
CUSTOMERS = 30


def examples_of(index: int) -> list[Example]:
    rng = np.random.default_rng(index)
    found = []
    for number in range(EACH):
        fields: dict[str, Any] = {f"f{i}": float(value) for i, value in enumerate(rng.normal(0.2 * index, 1.0, 12))}
        found.append(Example(fields, "yes" if fields["f0"] > 0.3 else "no", bytes([index, number % CUSTOMERS])))
    return found


class AskedDevice(OneHotDevice):
    """Uploads a one-hot vector where it is asked to train, and statistics of its records where it is asked a query."""

    examples: list[Example]

    def values(self, offer: Offer) -> np.ndarray:
        if offer.query is None:
            return super().values(offer)
        subjects = np.array([example.subject[1] for example in self.examples], np.int64)
        values = answer(offer, first_model(), SCHEMA, self.examples, subjects, entropy=os.urandom)
        noise = noise_share(offer.privacy, offer.length, Keystream(os.urandom(32)))
        rounded = quantised(offer.privacy, values, Keystream(os.urandom(32)))
        return rounded if noise is None else rounded + noise


class AskedFleet(SmallFleet):
    """The whole aggregator, with devices that answer."""

    def add(self, name: str, index: int, key: bytes) -> AskedDevice:
        transport = self.broker.transport(name, topics.device_filters(FLEET, name))
        device = AskedDevice(name, FLEET, index, key, transport.publish)
        device.examples = examples_of(index)
        transport.start(Callbacks(on_message=device.receive))
        add_device(self.service.registry, device)
        return device

    @property
    def examples(self) -> list[Example]:
        return [example for device in self.devices for example in device.examples]
