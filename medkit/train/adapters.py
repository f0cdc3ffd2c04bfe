"""Loading saved LoRA adapters for evaluation."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from medkit import MedkitError

# Initializations that PEFT subtracts from the base when it loads the adapter. This is impossible with 4-bit
# weights, and some of them are random.
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class AdapterError(MedkitError):
    """A folder without a LoRA adapter, or an adapter that does not fit the base."""


def read_config(folder: str | Path):
    """The adapter's peft.LoraConfig.

    Raises AdapterError if the folder has no adapter, or one that is not plain LoRA.
    """
    from peft import PeftConfig

    folder = Path(folder)
    file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not file.is_file() or not weights.is_file():
        raise AdapterError(f"{folder} is not an adapter folder; it needs {file.name} and {weights.name}")
    unreadable = AdapterError(f"{file} is not a LoRA configuration; save the adapter again")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        peft_type, initialization = saved["peft_type"], str(saved.get("init_lora_weights", "")).lower()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise unreadable from None
    if peft_type != "LORA":
        raise AdapterError(f"{folder} has an adapter of type {peft_type}; use a LoRA adapter")
    if initialization.startswith(CHANGE_THE_BASE):
        raise AdapterError(
            f"{folder} belongs to a modified base (init_lora_weights={initialization}); save it as plain "
            "LoRA, with PEFT's path_initial_model_for_weight_conversion"
        )
    _tensor_names(folder)  # raises if the weights cannot be read
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise unreadable from None


def attach(model, folder: str | Path):
    """Add the adapter in `folder` to `model`, for evaluation.

    Raises AdapterError if it does not fit; `model` may then keep some of the adapter's layers.
    """
    from peft import PeftModelForCausalLM

    config = read_config(folder)
    config.inference_mode = True
    mismatch = AdapterError(f"the adapter in {folder} does not fit this model; it belongs to another base")
    try:
        adapted = PeftModelForCausalLM(model, config)
        result = adapted.load_adapter(str(folder), "default")
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:  # sizes, modules, keys
        raise mismatch from error
    if result.missing_keys or result.unexpected_keys:
        raise mismatch
    return adapted.eval()


def detach(model):
    """Remove the LoRA layers and return the base. Replaced modules (see `replaces_modules`) stay replaced."""
    from peft import PeftModel

    return model.unload() if isinstance(model, PeftModel) else model


def replaces_modules(folder: str | Path) -> bool:
    """Whether the adapter also replaces full weights (modules_to_save, embeddings), which `detach` does not
    undo."""
    return not all(".lora_" in name for name in _tensor_names(folder))


def _tensor_names(folder: str | Path) -> list[str]:
    file = Path(folder) / "adapter_model.safetensors"
    try:
        with safe_open(file, "pt") as weights:
            return list(weights.keys())
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{file} cannot be read ({error}); save the adapter again") from None
