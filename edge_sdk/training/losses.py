"""Examples as tensors, and the loss of some of them. Refuses a loss that is not finite and labels that do not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch reader knows

from edge_sdk.training.jobs import TrainingFailed
from edge_sdk.training.module import GraphModule

Features = Mapping[str, torch.Tensor]
Rows = npt.NDArray[np.int64]

_LOSS_ROWS: Final = 1024


class Batches:
    """All examples, and chosen rows of them."""

    def __init__(self, features: Features, labels: torch.Tensor) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Rows) -> tuple[Features, torch.Tensor]:
        """The features and labels at `rows`."""
        index = torch.from_numpy(rows)
        return {name: value.index_select(0, index) for name, value in self.features.items()}, self.labels[index]

    def parts(self) -> Iterator[tuple[Features, torch.Tensor]]:
        """All examples in order, without copies."""
        for start in range(0, len(self), _LOSS_ROWS):
            end = start + _LOSS_ROWS
            yield {name: value[start:end] for name, value in self.features.items()}, self.labels[start:end]


def loss_sum(
    name: str, logits: torch.Tensor, labels: torch.Tensor, quantiles: torch.Tensor | None = None
) -> torch.Tensor:
    """Summed loss of logits [B, 1, K or Q] against labels [B]; `quantiles` [Q] for "pinball". Raises TrainingFailed.

    Pinball (Koenker and Bassett 1978, "Regression quantiles"): sum over q of max(q (y - z), (q - 1) (y - z)).
    """
    if name == "cross_entropy":
        return F.cross_entropy(logits, labels.long(), reduction="sum")
    if name == "pinball":
        if quantiles is None or logits.shape != (len(labels), len(quantiles)):
            raise TrainingFailed("wrong-shape", f"{list(logits.shape)} logits do not fit the quantiles {quantiles}")
        above = labels.float().view(-1, 1) - logits
        return torch.maximum(quantiles * above, (quantiles - 1) * above).sum()
    if logits.numel() != labels.numel():
        raise TrainingFailed("wrong-shape", f"{list(logits.shape)} logits do not fit {list(labels.shape)} labels")
    flat = logits.reshape(-1)
    if name == "binary_cross_entropy":
        return F.binary_cross_entropy_with_logits(flat, labels.float(), reduction="sum")
    return F.mse_loss(flat, labels.float(), reduction="sum")


def mean_loss(module: GraphModule, data: Batches) -> float:
    """Over all examples, with the weights as they are."""
    with torch.no_grad():
        total = sum(finite(loss_sum(module.loss_name, module(x), y, module.quantiles)) for x, y in data.parts())
    return total / len(data)


def check_apart(module: GraphModule, data: Batches) -> None:
    """Refuse a model in which one example moves another's output: clipping by unit would bound nothing. TrainingFailed.

    Two examples together against each alone: this finds a mistake, such as a mean over the batch, not a graph that was
    made to hide it. That a model does what its signers say is for the approval of a release.
    """
    if len(data) < 2:
        return
    with torch.no_grad():
        together = module(data.take(np.array([0, len(data) - 1]))[0])
        alone = torch.cat([module(data.take(np.array([row]))[0]) for row in (0, len(data) - 1)])
    if together.shape != alone.shape or not torch.allclose(together, alone, 1e-3, 1e-4, equal_nan=True):
        raise TrainingFailed("mixed-examples", "one example moves another's output: publish a model without it")


def finite(loss: torch.Tensor) -> float:
    """The number. Raises TrainingFailed where it is NaN or infinite."""
    value = loss.item()
    if not np.isfinite(value):
        raise TrainingFailed("not-finite", "the loss is NaN or infinite: check the examples or lower the learning rate")
    return value
