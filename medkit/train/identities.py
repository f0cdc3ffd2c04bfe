"""Hashes that identify a model, so that results of one are never taken for another's."""

import contextlib
import hashlib
import json
from pathlib import Path

from medkit import MedkitError
from medkit.runs import storage

# What a folder's model depends on: weights, configuration, tokenizer, chat template
KEPT = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


class IdentityError(MedkitError):
    """A model that is neither a folder nor in the hub's cache."""


def of_model(model: str | Path, adapter: str | Path = "", revision: str = "main") -> str:
    """A sha256 over weights, configuration and tokenizer, under which the model's answers are stored.

    model, adapter: a folder, hashed file by file, or a hub id, identified by the commit of `revision` in the
    local cache. Raises IdentityError where there is neither.
    """
    parts = [_of(model, revision), *([_of(adapter, "main")] if str(adapter) else [])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def of_base(model: str | Path, revision: str = "main") -> str:
    """A base in run.json and checkpoints: ID@COMMIT on the hub, or the sha256 of a folder's files."""
    found = _of(model, revision)
    return found if isinstance(found, str) else hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _digest(file: Path) -> str:
    """sha256 of a file; of a configuration, without the version of the library that wrote it."""
    if file.name.endswith("config.json"):
        with contextlib.suppress(ValueError, AttributeError):
            content = json.loads(file.read_text(encoding="utf-8"))
            content.pop("transformers_version", None)
            return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return storage.sha256(file)


def _of(model: str | Path, revision: str) -> dict[str, str] | str:
    """file -> sha256 of a folder; ID@COMMIT of what the hub's cache holds."""
    folder = Path(model)
    if folder.is_dir():
        files = [file for file in sorted(folder.iterdir()) if file.suffix in KEPT and file.is_file()]
        if not files:
            raise IdentityError(f"{folder} holds no model; give a Hugging Face folder or adapter folder")
        return {file.name: _digest(file) for file in files}
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in ("config.json", "adapter_config.json"):
        with contextlib.suppress(HFValidationError):
            at = try_to_load_from_cache(str(model), name, revision=revision)
            if isinstance(at, str):
                return f"{model}@{Path(at).parent.name}"
    raise IdentityError(
        f"{model} is neither a folder nor a model in the hub's cache; check the name, or load it first"
    )
