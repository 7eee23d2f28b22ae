"""The document that describes the chat API to programs: static/openapi.yaml, served as JSON."""

import json
from functools import lru_cache
from pathlib import Path

FILE = Path(__file__).resolve().parent / "static" / "openapi.yaml"


@lru_cache(maxsize=1)
def read_document() -> bytes:
    """Return the document as JSON. It is read when somebody first asks."""
    import yaml

    return json.dumps(yaml.safe_load(FILE.read_text(encoding="utf-8")), ensure_ascii=False).encode()
