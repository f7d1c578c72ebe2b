"""Authoring kit: a torch module and a record schema to a checked ONNX file in one call. Needs extra `author`.

The module maps "features" float32 [B, schema.width] to logits [B, schema.label.outputs]. Refuses, with PublishRefused,
one that does not, that mixes the examples of a batch, or whose file answers otherwise; with UnsafeModel or
UnsupportedModel one that devices could not load or train, and the message says which operation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnxruntime
import torch
from torch import nn

from edge_sdk.artifact.features import INPUT
from edge_sdk.artifact.publish import PublishRefused, publish
from edge_sdk.artifact.schema import Schema, check_schema
from edge_sdk.artifact.starter import loss_of
from edge_sdk.training.module import GraphModule

EXAMPLES: Final = 3
_NEAR: Final = 1e-3


def save(module: nn.Module, schema: Schema, path: Path | str | None = None, loss: str | None = None) -> bytes:
    """Export, check and return the ONNX bytes, also written to `path` where given.

    `loss`: the label's own (`starter.loss_of`) unless named. Raises PublishRefused,
    SchemaError, UnsafeModel or UnsupportedModel.
    """
    check_schema(schema)
    rows = torch.rand(EXAMPLES, schema.width, generator=torch.Generator().manual_seed(0))
    expected = _answers(module, schema, rows)
    data = publish(module, {INPUT: rows}, schema, loss or loss_of(schema.label))
    _check_same(data, rows, expected)
    if path is not None:
        Path(path).write_bytes(data)
    return data


def _answers(module: nn.Module, schema: Schema, rows: torch.Tensor) -> torch.Tensor:
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            together: torch.Tensor = module(rows)
            alone = torch.cat([module(rows[place : place + 1]) for place in range(len(rows))])
    except RuntimeError as error:
        what = f"the module does not take features of {schema.width} columns, which this schema makes: {error}"
        raise PublishRefused("shape", what) from error
    finally:
        module.train(training)
    if together.shape != (len(rows), schema.label.outputs):
        what = f"{schema.label.name!r} needs {schema.label.outputs} outputs a record, not {list(together.shape[1:])}"
        raise PublishRefused("shape", what)
    if not torch.allclose(together, alone, _NEAR, _NEAR):
        raise PublishRefused("mixed", "one example moves another's output: leave batch normalisation out")
    return together


def _check_same(data: bytes, rows: torch.Tensor, expected: torch.Tensor) -> None:
    """The file answers as the module did, in the runtime that predicts and in the one that trains."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    served = torch.from_numpy(session.run(None, {INPUT: rows.numpy()})[0])
    with torch.no_grad():
        trained = GraphModule(data)({INPUT: rows})
    for answers in (served, trained):
        if answers.shape != expected.shape or not torch.allclose(answers, expected, _NEAR, _NEAR):
            raise PublishRefused("changed", "the exported file does not answer as the module does")
