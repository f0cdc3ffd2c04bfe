"""Checks before anything is written: all inputs of a run exist and are complete."""

from collections.abc import Iterable
from dataclasses import replace

from huggingface_hub import try_to_load_from_cache

from medkit import prompts, recipes
from medkit.data import sources
from medkit.records import Dialogue, Turn
from medkit.runs import inputs, lm_eval_tasks, machine
from medkit.runs.inputs import InputError
from medkit.train import models, smollm2

SCORER = "scorer"  # the part of a run's input that is BERTScore's encoder


def check(recipe: recipes.Recipe, data_dir: str, parts: Iterable[str]) -> None:
    """Raise unless the run can read its model and its sources.

    parts: "NAME train" or "NAME eval", each read in the same way as by the run (from the hub, into its
    cache), and SCORER. The built-in corpus is part of the package and not checked.
    Raises InputError, HubError if the hub does not answer, or MedkitError for a source or a task in
    mcq.lm_eval_tasks.
    """
    inputs.connect(recipe, data_dir)
    if any(part.endswith(" train") for part in parts):  # prepared rows are cached
        machine.check_writable(machine.cache_dir(), "MEDKIT_CACHE")
        for stage in (recipe.stage1, recipe.stage2):
            inputs.check_tracker(stage.report_to)
    parts = list(dict.fromkeys(parts))
    lm_eval_tasks.check(recipe.mcq.lm_eval_tasks)
    check_model(recipe.model.base, recipe.model.revision)
    check_chat(recipe, trains="dialogues train" in parts)
    if SCORER in parts:
        check_scorer(recipe.consumer.scorer, offline=inputs.is_fully_local(recipe, data_dir))
    if not data_dir and recipe.data.origin == "builtin":
        if recipe.data != replace(recipe.data, dialogues="notechat", pubmedqa_train="artificial"):
            raise InputError(
                "the built-in corpus has neither MTS-Dialog nor PubMedQA's official test fold; give "
                "--data-dir, or leave data.dialogues and data.pubmedqa_train as they are"
            )
        return
    for name, part in (item.split() for item in parts if item != SCORER):
        # In a folder all rows are checked. On the hub one row shows that the split exists.
        limit = recipe.data.row_limit(name, part) if data_dir else 1
        sources.load(*recipe.data.source_part(name, part), data_dir or None, limit=limit)


def check_model(base: str, revision: str = "main") -> None:
    """Raise InputError unless the base is a model folder, on the hub, or the model from PyPI; HubError if the
    hub does not answer."""
    if base == "smollm2":
        smollm2.gguf_file()
        if not smollm2.cached_folder().is_dir():  # it will be converted
            machine.check_writable(machine.cache_dir(), "MEDKIT_CACHE")
    else:
        inputs.check_model_files(base, revision)


def check_chat(recipe: recipes.Recipe, trains: bool) -> None:
    """Raise PromptError if the base's tokenizer or chat template cannot render exam questions or, for
    training, conversations; MedkitError if they cannot be read."""
    tokenizer = models.load_tokenizer(recipe.model)
    prompts.letter_position(tokenizer, recipe.data.mcq_target)
    if trains:
        turns = (Turn("assistant", "Hello."), Turn("user", "It hurts."), Turn("assistant", "Where?"))
        chat = prompts.ChatFormat.from_tokenizer(tokenizer)
        chat.pieces(prompts.messages(Dialogue("probe", "notechat", turns)))


def check_scorer(scorer: str, offline: bool) -> None:
    """Raise InputError unless BERTScore's encoder can be read; offline, the hub's cache must have it."""
    if scorer == "minilm":
        smollm2.minilm_folder()
    elif inputs.is_path(scorer):
        inputs.check_folder(scorer)
    elif not offline:
        inputs.check_hub(scorer, "main", "--set consumer.scorer=DIR")
    elif not isinstance(try_to_load_from_cache(scorer, "config.json"), str):
        raise InputError(
            f"BERTScore's encoder {scorer} is not in the hub's cache, and a run with local rows and a "
            "local model stays offline; take --set consumer.scorer=minilm --set consumer.scorer_layers=6, or "
            "a folder"
        )
