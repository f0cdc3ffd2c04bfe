"""What an evaluation has computed so far, on disk, so that a killed one resumes where it stopped."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from medkit import MedkitError
from medkit.runs import storage


class StoreError(MedkitError):
    """A store whose entries could be read for another model's."""


class Store:
    """A JSON Lines file of results by key, one `kind` of dataclass a line; without a path it keeps nothing.

    owner: what computes, as evaluate.lineup's identity of a model's weights; it is in every key, so that one
    model's results are never read for another's. Raises StoreError for a path without owner.
    """

    def __init__(self, path: str | Path | None, kind: type, owner: str):
        if path and not owner:
            raise StoreError(
                "a store without a key could read one model's answers for another; give the key of "
                "identities.of_model(...)"
            )
        self.path, self.kind, self.owner = Path(path) if path else None, kind, owner

    def key(self, *parts) -> str:
        """The key of what `parts`, in JSON's types, and the owner decide."""
        return hashlib.sha256(json.dumps([self.owner, *parts], sort_keys=True).encode()).hexdigest()

    def read(self) -> dict:
        """The results by key. A line that a kill cut short is dropped, and so is one that holds no result:
        they are computed again."""
        if self.path is None or not self.path.exists():
            return {}
        text, found = self.path.read_bytes(), {}
        for line in text[: text.rfind(b"\n") + 1].splitlines():
            try:
                row = json.loads(line)
                key = row.pop("key")
                row = {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}
                found[key] = self.kind(**row)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
        return found

    def add(self, results: Mapping) -> None:
        """Append results by key, in one write."""
        if self.path is not None and results:
            storage.append_jsonl(self.path, *({"key": key, **asdict(one)} for key, one in results.items()))
