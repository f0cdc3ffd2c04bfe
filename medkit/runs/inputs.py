"""What a run reads is there and whole: found out before anything is written."""

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from medkit import MedkitError, recipes
from medkit.data import hub, sources
from medkit.data.formats import POINTER
from medkit.records import Dialogue, Turn
from medkit.runs import machine
from medkit.train import smollm2

SCORER = "scorer"  # among the parts that a run reads


class InputError(MedkitError):
    """A data folder or a model that is not there."""


def check(recipe: recipes.Recipe, data_dir: str, parts: Iterable[str]) -> None:
    """Refuse, in one line, a model or a source that the run could not read.

    parts: "NAME train" or "NAME eval", each of which is read as the run will read it (from the hub it is
    downloaded now, into the hub's cache), and SCORER for BERTScore's encoder; the built-in corpus is not
    read, as it is written from the package.
    Raises InputError, the SourceError of the source, or HubError where the hub does not answer.
    """
    connect(recipe, data_dir)
    if any(part.endswith(" train") for part in parts):  # prepared rows are kept
        machine.check_writable(machine.cache_dir(), "MEDKIT_CACHE")
    parts = list(dict.fromkeys(parts))
    check_model(recipe.model.base, recipe.model.revision)
    check_chat(recipe, trains="notechat train" in parts)
    if SCORER in parts:
        check_scorer(recipe.consumer.scorer, offline=private(recipe, data_dir))
    if not data_dir and recipe.data.origin == "builtin":
        if recipe.data != replace(recipe.data, dialogues="notechat", pubmedqa_train="artificial"):
            raise InputError(
                "the built-in corpus has neither MTS-Dialog nor PubMedQA's official test fold; give "
                "--data-dir, or leave data.dialogues and data.pubmedqa_train as they are"
            )
        return
    for name, which in (part.split() for part in parts if part != SCORER):
        limit = getattr(recipe.data, f"rows_{name}", 0) if which == "train" else 0
        # From the hub one row tells that the split is there; of a folder's files all rows are checked.
        sources.load(*recipe.data.reads(name, which), data_dir or None, limit=limit if data_dir else 1)


def connect(recipe: recipes.Recipe, data_dir: str) -> None:
    """`hub.connect` for a run; HubError at once where its base is on a hub that does not answer."""
    hub.connect(not private(recipe, data_dir))
    if hub.silent():
        check_model(recipe.model.base, recipe.model.revision)


def check_data_dir(data_dir: str) -> None:
    if data_dir and not os.path.isdir(data_dir):  # unlike Path.is_dir, False for any name
        raise InputError(f"--data-dir {data_dir} is no folder; name one that holds a folder per source")


def check_truth(name: str, value: bool) -> None:
    """InputError unless a notebook's parameter is True or False: papermill hands on what it cannot read as
    text, and any text would count as true."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r} is neither true nor false; give it as True or False")


def check_model(base: str, revision: str = "main") -> None:
    """InputError where the base is neither a model folder, nor on the hub, nor the model from PyPI;
    HubError where the hub does not answer."""
    if base == "smollm2":
        smollm2.gguf_file()
        if not smollm2.place().is_dir():  # it will be converted
            machine.check_writable(machine.cache_dir(), "MEDKIT_CACHE")
    elif _is_path(base):
        _check_folder(base)
        _check_weights(Path(base).expanduser())
    else:
        config = _check_hub(base, revision, "--set model.base=DIR")
        if hub.offline():  # nothing more is coming
            try:
                _check_weights(config.parent)
            except InputError as error:
                hub.refuse(base, error)
                raise


def check_chat(recipe: recipes.Recipe, trains: bool) -> None:
    """PromptError where the base's tokenizer or chat template cannot carry exam questions or, for training,
    conversations; TrainingError where they cannot be read."""
    from medkit import prompts
    from medkit.train import models

    tokenizer = models.load_tokenizer(recipe.model)
    prompts.letter_place(tokenizer, recipe.data.mcq_target)
    if trains:
        turns = (Turn("assistant", "Hello."), Turn("user", "It hurts."), Turn("assistant", "Where?"))
        chat = prompts.ChatFormat.from_tokenizer(tokenizer)
        chat.pieces(prompts.messages(Dialogue("probe", "notechat", turns)))


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


def is_local(base: str) -> bool:
    """Whether a base is on this machine: a folder, or the model from PyPI."""
    return base == "smollm2" or _is_path(base)


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).exists()


def _check_folder(name: str) -> None:
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
    """A base's weights and tokenizer: read as safetensors alone, since a pickle can run code."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{folder} holds no .safetensors weights; give a whole Hugging Face model folder")
    if (index := folder / "model.safetensors.index.json").is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{index} names no weight_map; fetch the model again") from None
        if missing := sorted(named - {file.name for file in weights}):
            raise InputError(f"{folder} lacks {missing[0]}; fetch the model again")
    for file in weights:
        try:
            with file.open("rb") as start:
                if start.read(len(POINTER)) == POINTER:
                    raise InputError(f"{file} is a Git LFS pointer; run `git lfs pull` in {folder}")
            with safe_open(file, "pt"):  # the header, against the file's length
                pass
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} cannot be read ({error}); fetch the model again") from None
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InputError(f"{folder} holds no tokenizer; give a whole Hugging Face model folder")


def _check_hub(name: str, revision: str, mend: str) -> Path:
    """The hub's config.json, in the cache."""
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except Exception as error:  # the libraries below raise dozens of kinds
        hub.refuse(name, error)
        reason = "HF_HUB_OFFLINE is set" if hub.offline() else type(error).__name__
        raise InputError(
            f"{name} cannot be had from the hub ({reason}); check the name, the connection and HF_TOKEN, "
            f"or name a folder with {mend}"
        ) from None


def private(recipe: recipes.Recipe, data_dir: str) -> bool:
    """True where rows and model are local, so that the libraries may be told to stay offline."""
    rows_here = bool(data_dir) or recipe.data.origin == "builtin"
    return rows_here and is_local(recipe.model.base)
