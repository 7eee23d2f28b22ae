"""Check a recipe and print what it comes to, or print what may stand in one.

Run as: python -m function_app.recipe [recipe.yaml] [--metadata recipe_training_epochs=3 …]
        python -m function_app.recipe --schema | --markdown
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .conflicts import conflicts
from .describe import as_yaml, json_schema, markdown
from .layers import resolve
from .parsing import RecipeError


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 1 for a recipe that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m function_app.recipe", description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, help="a recipe.yaml; without one the built-in defaults")
    parser.add_argument(
        "--metadata", nargs="+", action="extend", default=[], metavar="name=value", help="as of the dropped blob"
    )
    parser.add_argument("--schema", action="store_true", help="print the JSON schema for editors")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/recipe.md")
    arguments = parser.parse_args(argv)
    if arguments.schema:
        print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
        return 0
    if arguments.markdown:
        print(markdown())
        return 0
    metadata = dict(pair.partition("=")[::2] for pair in arguments.metadata)
    try:
        text = arguments.file.read_bytes() if arguments.file else None
        resolved = resolve(text, metadata, file=str(arguments.file), dataset="the file")
    except OSError as error:
        print(f"error: cannot read {arguments.file}: {error.strerror}", file=sys.stderr)
        return 1
    except RecipeError as error:
        print(error, file=sys.stderr)
        return 1
    print(as_yaml(resolved), end="")
    # What the recipe leaves to the app, such as its machine, is not known here; the intake knows.
    found = conflicts(resolved.recipe, resolved.recipe.compute.instance_type or "")
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
