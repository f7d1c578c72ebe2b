"""Write the task file of an application and, for a schema, its first model.

    python -m edge_sdk.artifact.recipes churn --out DIR [--schema FILE] [--seed 0]

The task file goes to `aggregator task create --spec`, the model to `--model`. Refuses to write over a file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from edge_sdk.artifact.errors import ArtifactError, SchemaError
from edge_sdk.artifact.recipes import APPLICATIONS, recipe, task
from edge_sdk.artifact.schema import Schema


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m edge_sdk.artifact.recipes", description=__doc__.split("\n")[0])
    parser.add_argument("application", choices=APPLICATIONS)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--schema", type=Path, help="record schema as JSON: writes the first model too")
    parser.add_argument("--seed", type=int, default=0, help="of the model's fixed random features (default: 0)")
    given = parser.parse_args(arguments)
    try:
        for file in write(given.application, given.out, given.schema, given.seed):
            sys.stdout.write(f"{file}\n")
    except FileExistsError as error:
        sys.stderr.write(f"recipes: error: {error.filename} is there already\nrecipes: hint: choose another --out\n")
        return 1
    except SchemaError as error:
        said, _, remedy = str(error).partition("; ")
        hint = remedy or f"make it with edge_sdk.artifact.recipes.{given.application}.schema(...).to_json()"
        sys.stderr.write(f"recipes: error: {said}\nrecipes: hint: {hint}\n")
        return 1
    except (ArtifactError, OSError) as error:
        sys.stderr.write(f"recipes: error: {error}\n")
        return 1
    return 0


def write(application: str, folder: Path, schema: Path | None, seed: int) -> list[Path]:
    """The files written. Raises ArtifactError for a schema that does not hold, OSError."""
    module = recipe(application)
    records = None if schema is None else Schema.from_json(schema.read_bytes())
    settings = msgspec.json.encode(task(application, records))
    contents = {f"{application}.task.json": msgspec.json.format(settings) + b"\n"}
    if records is not None:
        contents[f"{application}.onnx"] = module.model(records, seed)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in contents]
    for file, content in zip(files, contents.values(), strict=True):
        with file.open("xb") as out:
            out.write(content)
    return files


if __name__ == "__main__":
    raise SystemExit(main())
