"""What a run reads is there and whole: found out before anything is written."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache

from medkit import MedkitError, recipes, smollm2, sources


class InputError(MedkitError):
    """A data folder or a model that is not there."""


def check(recipe: recipes.Recipe, data_dir: str, parts: Iterable[str]) -> None:
    """Refuse, in one line, a model or a source that the run could not read.

    parts: "NAME train" or "NAME eval", each of which is read as the run will read it (from the hub it is
    downloaded now, into the hub's cache); the built-in corpus is not read, as it is written from the package.
    Raises InputError, or the SourceError of the source.
    """
    parts = list(dict.fromkeys(parts))
    check_model(recipe.model.base, recipe.model.revision)
    if "icliniq eval" in parts:
        check_scorer(recipe.consumer.scorer, offline=private(recipe, data_dir))
    if not data_dir and recipe.data.origin == "builtin":
        return
    for part in parts:
        name, which = part.split()
        limit = getattr(recipe.data, f"rows_{name}", 0) if which == "train" else 0
        # From the hub one row tells that the split is there; of a folder's files all rows are checked.
        sources.load(name, which, data_dir or None, limit=limit if data_dir else 1)


def check_data_dir(data_dir: str) -> None:
    if data_dir and not Path(data_dir).is_dir():
        raise InputError(f"--data-dir {data_dir} is no folder; name one that holds a folder per source")


def check_model(base: str, revision: str = "main") -> None:
    """InputError where the base is neither a model folder, nor on the hub, nor the model from PyPI."""
    if base == "smollm2":
        smollm2.gguf_file()
    elif _is_path(base):
        _check_folder(base)
    else:
        _check_hub(base, revision, "--set model.base=DIR")


def check_scorer(scorer: str, offline: bool) -> None:
    """The same for BERTScore's encoder, which a private run may take from the hub's cache only."""
    if scorer == "minilm":
        smollm2.minilm_folder()
    elif _is_path(scorer):
        _check_folder(scorer)
    elif not offline:
        _check_hub(scorer, "main", "--set consumer.scorer=DIR")
    elif not isinstance(try_to_load_from_cache(scorer, "config.json"), str):
        raise InputError(
            f"BERTScore's encoder {scorer} is not in the hub's cache, and a run of local rows and model "
            "stays offline; take --set consumer.scorer=minilm --set consumer.scorer_layers=6, or a folder"
        )


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).exists()


def _check_folder(name: str) -> None:
    if not (Path(name).expanduser() / "config.json").is_file():
        raise InputError(f"{name} is no model folder (no config.json); give a Hugging Face one")


def _check_hub(name: str, revision: str, mend: str) -> None:
    try:
        hf_hub_download(name, "config.json", revision=revision)
    except Exception as error:  # the libraries below raise dozens of kinds
        reason = type(error).__name__
        raise InputError(
            f"{name} cannot be had from the hub ({reason}); check the name, the connection and HF_TOKEN, "
            f"or name a folder with {mend}"
        ) from None


def private(recipe: recipes.Recipe, data_dir: str) -> bool:
    """True where rows and model are local, so that the libraries may be told to stay offline."""
    rows_here = bool(data_dir) or recipe.data.origin == "builtin"
    return rows_here and (recipe.model.base == "smollm2" or Path(recipe.model.base).expanduser().is_dir())
