"""Saves an evaluation's results to disk, so that an interrupted evaluation can resume."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from medkit import MedkitError
from medkit.runs import storage


class Store:
    """A JSON Lines file of results by key, one dataclass instance per line. Without a path, saves nothing.

    owner: the model that produced the results (lineup's hash of its weights). It is part of every key, so one
    model's results are never read for another. Raises MedkitError for a path without an owner.
    """

    def __init__(self, path: str | Path | None, result_type: type, owner: str):
        if path and not owner:
            raise MedkitError(
                "a store without a key could read one model's answers for another; pass the key from "
                "identities.of_model(...)"
            )
        self.path, self.result_type, self.owner = Path(path) if path else None, result_type, owner

    def key(self, *inputs) -> str:
        """The key of a result that depends on the owner and on `inputs` (JSON types)."""
        return hashlib.sha256(json.dumps([self.owner, *inputs], sort_keys=True).encode()).hexdigest()

    def read(self) -> dict:
        """The results by key. Truncated or malformed lines are skipped; their results are computed again."""
        if self.path is None or not self.path.exists():
            return {}
        content, results = self.path.read_bytes(), {}
        for line in content[: content.rfind(b"\n") + 1].splitlines():
            try:
                row = json.loads(line)
                key = row.pop("key")
                row = {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}
                results[key] = self.result_type(**row)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
        return results

    def add(self, results: Mapping) -> None:
        """Append results by key, in one write."""
        if self.path is not None and results:
            rows = ({"key": key, **asdict(result)} for key, result in results.items())
            storage.append_jsonl(self.path, *rows)

    def complete(
        self,
        results: dict,
        batches: Sequence[Sequence],
        compute: Callable[[Sequence], Sequence[Any]],
        unit: str = "",
    ) -> None:
        """Compute the jobs missing from `results`, and add them to it and to the file.

        Jobs have a `key`. A batch with missing results is computed whole, so that a resumed run computes the
        same batches. `unit` labels the progress bar; "" hides it.
        """
        total = sum(job.key not in results for batch in batches for job in batch)
        # The bar disappears at the end, so that a notebook's first screen shows the result.
        with tqdm(total=total, desc=f"{unit}s", unit=unit, disable=not unit or not total, leave=False) as bar:
            for batch in batches:
                keys = [job.key for job in batch]
                missing = [key for key in keys if key not in results]
                if missing:
                    computed = dict(zip(keys, compute(batch), strict=True))
                    new = {key: computed[key] for key in missing}
                    results |= new
                    self.add(new)
                    bar.update(len(missing))


def chunks(items: Sequence, size: int) -> list[Sequence]:
    """Split `items` into consecutive chunks of at most `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]
