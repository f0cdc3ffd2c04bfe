"""Saved LoRA adapters for evaluation: PEFT loads them with their whole configuration."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from medkit import MedkitError

# Initial weights that PEFT subtracts from the base when it loads the adapter: impossible with 4-bit weights,
# and some are drawn at random.
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class AdapterError(MedkitError):
    """A folder without a LoRA adapter, or with one that does not fit the base."""


def read_config(folder: str | Path):
    """The adapter's peft.LoraConfig.

    Raises AdapterError where there is none, for other types of adapters, and for initial weights that change
    the base.
    """
    from peft import PeftConfig

    folder = Path(folder)
    file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not file.is_file() or not weights.is_file():
        raise AdapterError(f"{folder} is no adapter folder (adapter_config.json, adapter_model.safetensors)")
    unreadable = AdapterError(f"{file} is no LoRA adapter's configuration; save the adapter again")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        kind, initial = saved["peft_type"], str(saved.get("init_lora_weights", "")).lower()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise unreadable from None
    if kind != "LORA":
        raise AdapterError(f"{folder} holds an adapter of type {kind}; only LoRA adapters are read")
    if initial.startswith(CHANGE_THE_BASE):
        raise AdapterError(
            f"{folder} belongs to a changed base (init_lora_weights={initial}); save it as plain LoRA, with "
            "PEFT's path_initial_model_for_weight_conversion"
        )
    _names(folder)
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise unreadable from None


def attach(model, folder: str | Path):
    """`model` with the adapter of `folder`, for evaluation.

    Raises AdapterError where it does not fit; parts of it may then be left in `model`.
    """
    from peft import PeftModelForCausalLM

    config = read_config(folder)
    config.inference_mode = True
    misfit = AdapterError(f"the adapter in {folder} does not fit this model; it belongs to another base")
    try:
        adapted = PeftModelForCausalLM(model, config)
        outcome = adapted.load_adapter(str(folder), "default")
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:  # sizes, modules, keys
        raise misfit from error
    if outcome.missing_keys or outcome.unexpected_keys:
        raise misfit
    return adapted.eval()


def detach(model):
    """The base of `model` without its LoRA layers; what `replaces_modules` reports stays in it."""
    from peft import PeftModel

    return model.unload() if isinstance(model, PeftModel) else model


def replaces_modules(folder: str | Path) -> bool:
    """Whether the adapter has whole weights too (modules_to_save, embeddings), which stay in the base when it
    is detached."""
    return not all(".lora_" in name for name in _names(folder))


def _names(folder: str | Path) -> list[str]:
    """The names of the adapter's tensors."""
    file = Path(folder) / "adapter_model.safetensors"
    try:
        with safe_open(file, "pt") as weights:
            return list(weights.keys())
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{file} cannot be read ({error}); save the adapter again") from None
