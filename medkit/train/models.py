"""Loading models, tokenizers and adapters, by Unsloth on a GPU and, through its CPU backend, on a laptop.

Unsloth has to be imported before trl: `unsloth` does it.
"""

import atexit
import logging
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from medkit import MedkitError, first_line, prompts
from medkit.recipes import LoraSpec, ModelSpec
from medkit.runs import inputs
from medkit.train import adapters, cpu, identities, merging, smollm2

PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<|pad|>", "<pad>", "<unk>")


class TrainingError(MedkitError):
    """A model or adapter that cannot be loaded."""


def unsloth():
    """Import Unsloth, before trl, and return it. It compiles into a folder of this process, instead of its
    default in the working folder, where it would import whatever lies there."""
    if "UNSLOTH_COMPILE_LOCATION" not in os.environ:
        compiled = tempfile.mkdtemp(prefix="medkit-unsloth-")
        atexit.register(shutil.rmtree, compiled, ignore_errors=True)
        os.environ["UNSLOTH_COMPILE_LOCATION"] = compiled
    os.environ["UNSLOTH_COMPILE_LOCATION"] = os.path.abspath(os.environ["UNSLOTH_COMPILE_LOCATION"])
    # bitsandbytes warns that a faster kernel is on the hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import unsloth

    return unsloth


def first_process() -> bool:
    """Whether this is the first of the processes that torchrun or accelerate launch started."""
    return int(os.environ.get("RANK", 0)) == 0


def base_folder(base: str) -> str:
    """The argument of from_pretrained: a hub id, or a model folder; InputError for another folder."""
    if base == "smollm2":
        return str(smollm2.folder())
    if inputs.is_path(base):
        inputs.check_folder(base)
        return str(Path(base).expanduser())
    return base


def _place(model: ModelSpec) -> tuple[str, str | None]:
    """(`base_folder`, the revision of a hub id)."""
    name = base_folder(model.base)
    return name, None if Path(name).exists() else model.revision


def load(model: ModelSpec, *, gradient_checkpointing: bool = False):
    """(model, tokenizer) of the base, without an adapter.

    The tokenizer is that of `load_tokenizer`; Unsloth's may have another template. Raises TrainingError where
    there is no such model.
    """
    fast = unsloth().FastLanguageModel
    name, revision = _place(model)
    try:
        net, _ = fast.from_pretrained(
            model_name=name,
            max_seq_length=model.max_length,
            load_in_4bit=model.load_in_4bit,
            revision=revision,
            use_gradient_checkpointing="unsloth" if gradient_checkpointing else False,
            use_safetensors=True,
            use_exact_model_name=True,  # not a copy that Unsloth prefers
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise load_error(model.base, error) from None
    cpu.compute_unpacked(net)
    tokenizer = load_tokenizer(model)
    net.config.pad_token_id = tokenizer.pad_token_id
    return net, tokenizer


def load_tokenizer(model: ModelSpec):
    """The base's tokenizer, with the recipe's chat template and, where possible, a pad token that is no end
    token: otherwise a model never learns to stop.

    Raises TrainingError where it cannot be read, PromptError where its template cannot be used.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    name, revision = _place(model)
    try:
        try:
            # By tokenizer.json alone: Transformers 5 builds some classes anew, and loses R1's spaces.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name, revision=revision)
        except (OSError, ValueError, TypeError):  # no tokenizer.json
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise load_error(model.base, error) from None
    if model.chat_template == "chatml":
        tokenizer.chat_template = prompts.CHATML
    set_pad_token(tokenizer, _config(model).vocab_size)
    return tokenizer


def context_length(model: ModelSpec) -> int | None:
    """The number of positions of the base, for prompt and answer together; None where it is not stated."""
    return getattr(_config(model), "max_position_embeddings", None)


def _config(model: ModelSpec):
    """The configuration of the base's text part."""
    from transformers import AutoConfig

    name, revision = _place(model)
    try:
        return AutoConfig.from_pretrained(name, revision=revision).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise load_error(model.base, error) from None


def load_error(base: str, error: BaseException) -> TrainingError:
    """The error to raise where a library could not read a base."""
    return TrainingError(
        f"model {base} cannot be loaded ({first_line(error)}); check the name and the network, or give a "
        "whole folder"
    )


def set_pad_token(tokenizer, rows: int) -> None:
    """Choose a pad token that is no end token and has one of the embeddings' `rows`.

    In this order: the tokenizer's, one of PAD_TOKENS, a special token that the template does not write, BOS.
    Where none fits, pad stays as it is: only training needs one, and preflight refuses it.
    """
    chat, known = prompts.ChatFormat.from_tokenizer(tokenizer), tokenizer.get_vocab()
    spare = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    spare = sorted((t for t in spare if t not in chat.example), key=lambda t: ("pad" not in t, -known[t]))
    for token in (tokenizer.pad_token, *PAD_TOKENS, *spare, tokenizer.bos_token):
        if token in known and known[token] < rows and token not in (*chat.ends, tokenizer.eos_token):
            tokenizer.pad_token = token
            return


def attach_lora(model, lora: LoraSpec, *, seed: int, gradient_checkpointing: bool = False):
    """The model with a fresh LoRA adapter on every module the recipe names."""
    return unsloth().FastLanguageModel.get_peft_model(
        model,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        use_rslora=lora.rslora,
        target_modules=list(lora.target_modules),
        use_gradient_checkpointing="unsloth" if gradient_checkpointing else False,
        random_state=seed,
    )


def base_identity(model: ModelSpec) -> str:
    """identities.of_base of a base that has been loaded."""
    return identities.of_base(base_folder(model.base), model.revision)


def remove_checkpoints(folder: Path) -> None:
    """Remove an arm's checkpoints, in one step, so that a kill leaves none half removed."""
    place, aside = folder / "checkpoints", folder / ".checkpoints.old"
    shutil.rmtree(aside, ignore_errors=True)
    if place.exists():
        place.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def merge_adapter(model: ModelSpec, adapter: Path, folder: Path) -> None:
    """Write the base `model` with `adapter` merged, in 16 bit (merging.merge_adapter)."""
    base, tokenizer = load(model)
    merging.merge_adapter(adapters.attach(base, adapter), tokenizer, folder)


@contextmanager
def for_inference(model):
    """The model in evaluation mode and with a key-value cache, restored afterwards.

    Raises TrainingError on a GPU where an adapter acts on the output layer: Unsloth's decoding multiplies by
    that layer's weight and leaves the adapter out.
    """
    from peft.tuners.lora import LoraLayer

    if cpu.on_gpu() and isinstance(model.get_output_embeddings(), LoraLayer):
        raise TrainingError(
            "the adapter acts on lm_head, where Unsloth's decoding on a GPU leaves it out; evaluate what "
            "PEFT's merge_and_unload makes of it"
        )
    fast = unsloth().FastLanguageModel
    trained, cached = model.training, model.config.use_cache
    fast.for_inference(model)
    model.config.use_cache = True
    try:
        with cpu.fused_lora(model):
            yield model
    finally:
        model.config.use_cache = cached
        if trained:
            fast.for_training(model)


def use_adapter(model, folder: Path) -> None:
    """Load the weights saved in `folder` into the model's adapter."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    adapters.read_config(folder)
    misfit = TrainingError(f"the adapter in {folder} does not fit this model; it belongs to another base")
    try:
        outcome = set_peft_model_state_dict(model, load_file(str(Path(folder) / "adapter_model.safetensors")))
    except RuntimeError:  # tensors of other sizes
        raise misfit from None
    missing = [key for key in outcome.missing_keys if "lora_" in key]
    if missing or outcome.unexpected_keys:
        raise misfit


def save_adapter(model, tokenizer, folder: Path) -> None:
    """Write the adapter and the tokenizer into a folder that appears whole."""
    from medkit.train.checkpoints import atomic_folder

    with atomic_folder(Path(folder)) as aside:
        model.save_pretrained(aside, safe_serialization=True)
        tokenizer.save_pretrained(aside)
