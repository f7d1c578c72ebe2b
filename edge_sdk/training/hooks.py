"""Per-example gradients by Opacus' hooks: slow and large, for layers that book-keeping has no formula for.

Refuses a weight that nothing of the output depends on. Needs `opacus`, which is loaded only here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from edge_sdk.training.bookkeeping import Direct, Part, Totals
from edge_sdk.training.jobs import TrainingFailed
from edge_sdk.training.losses import Batches, Rows, finite, loss_sum
from edge_sdk.training.module import Elementwise, GraphModule


class HookedGradients:
    """See bookkeeping.BookedGradients: the same, by Opacus."""

    def __init__(self, module: GraphModule, recorded: Any) -> None:
        self._module, self._recorded = module, recorded

    def parts(self, data: Batches, rows: Rows, totals: Totals) -> list[Part]:
        """One forward and one backward pass over `rows`."""
        features, labels = data.take(rows)
        loss = loss_sum(self._module.loss_name, self._recorded(features), labels, self._module.quantiles)
        finite(loss)
        loss.backward()  # type: ignore[no-untyped-call] # torch has no annotation here
        parts: list[Part] = [Direct(_taken(parameter), total.view(-1)) for parameter, total in totals.items()]
        self._recorded.zero_grad(set_to_none=True)
        return parts


def _taken(parameter: Any) -> torch.Tensor:
    each: torch.Tensor | None = parameter.grad_sample
    if each is None:
        raise TrainingFailed("model-run", "a weight has no influence on the model's output: publish it again")
    parameter.grad_sample = None
    return each.flatten(1)


@contextmanager
def hooked(module: GraphModule) -> Iterator[HookedGradients]:
    """`module` wrapped so that a backward pass leaves per-example gradients."""
    from opacus.grad_sample import GradSampleModule, register_grad_sampler

    register_grad_sampler(Elementwise)(_elementwise)
    with warnings.catch_warnings():
        # Opacus hooks layers whose inputs need no gradient on purpose; torch warns at every step.
        warnings.simplefilter("ignore")
        recorded = GradSampleModule(module, batch_first=True, loss_reduction="sum")
        try:
            yield HookedGradients(module, recorded)
        finally:
            recorded.to_standard_module()


def _elementwise(
    layer: Elementwise, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """Opacus' form of a layer's formula."""
    return {layer.weight: layer.by_example(backprops if layer.adds else backprops * activations[0])}
