"""What an evaluation has computed so far, on disk, so that a killed one resumes where it stopped."""

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
    """A JSON Lines file of results by key, one `kind` of dataclass a line; without a path it keeps nothing.

    owner: what computes, such as evaluate.lineup's identity of a model's weights; it is in every key, so that
    one model's results are never read for another's. Raises MedkitError for a path without owner.
    """

    def __init__(self, path: str | Path | None, kind: type, owner: str):
        if path and not owner:
            raise MedkitError(
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

    def complete(
        self,
        done: dict,
        batches: Sequence[Sequence],
        compute: Callable[[Sequence], Sequence[Any]],
        unit: str = "",
    ) -> None:
        """Add to `done`, and to the file, the results of all jobs (they have a `key`) that it lacks.

        Batches are of all jobs, those in the file too: a resumed run computes the same batches. compute: a
        batch's results, in order. unit: of the progress bar; none without one.
        """
        missing = sum(job.key not in done for batch in batches for job in batch)
        with tqdm(total=missing, desc=f"{unit}s", unit=unit, disable=not unit or not missing) as bar:
            for batch in batches:
                new = [job.key for job in batch if job.key not in done]
                if new:
                    results = dict(zip([job.key for job in batch], compute(batch), strict=True))
                    found = {key: results[key] for key in new}
                    done |= found
                    self.add(found)
                    bar.update(len(new))


def chunks(items: Sequence, size: int) -> list[Sequence]:
    """The items in their order, `size` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]
