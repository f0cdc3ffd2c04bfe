"""Hashes that identify a model, so that results of different models are never confused."""

import contextlib
import hashlib
import json
from pathlib import Path

from medkit import MedkitError
from medkit.runs import storage

# The files that a model depends on: weights, configuration, tokenizer, chat template
SUFFIXES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


def of_model(model: str | Path, adapter: str | Path = "", revision: str = "main") -> str:
    """A sha256 of weights, configuration and tokenizer, used as the key of the model's answers.

    model, adapter: a folder, hashed file by file, or a hub id, identified by the commit of `revision` in the
    local cache. Raises MedkitError if it is neither.
    """
    parts = [_describe(model, revision), *([_describe(adapter, "main")] if str(adapter) else [])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def of_base(model: str | Path, revision: str = "main") -> str:
    """A base's identity in run.json and checkpoints: ID@COMMIT for the hub, else the sha256 of its files."""
    description = _describe(model, revision)
    if isinstance(description, str):
        return description
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()


def _digest(file: Path) -> str:
    """The sha256 of a file. Configurations are hashed without the version of Transformers."""
    if file.name.endswith("config.json"):
        with contextlib.suppress(ValueError, AttributeError):
            content = json.loads(file.read_text(encoding="utf-8"))
            content.pop("transformers_version", None)
            return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return storage.sha256(file)


def _describe(model: str | Path, revision: str) -> dict[str, str] | str:
    """file -> sha256 for a folder; ID@COMMIT for a model in the hub's cache."""
    folder = Path(model)
    if folder.is_dir():
        files = [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES and file.is_file()]
        if not files:
            raise MedkitError(f"{folder} contains no model; use a Hugging Face model or adapter folder")
        return {file.name: _digest(file) for file in files}
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in ("config.json", "adapter_config.json"):
        with contextlib.suppress(HFValidationError):
            cached = try_to_load_from_cache(str(model), name, revision=revision)
            if isinstance(cached, str):
                return f"{model}@{Path(cached).parent.name}"
    raise MedkitError(
        f"{model} is neither a folder nor a model in the hub's cache; check the name, or load it first"
    )
