"""Loading models, tokenizers and adapters with Unsloth, on a GPU or a CPU.

Unsloth must be imported before trl, by calling `unsloth`.
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
from medkit.train.checkpoints import atomic_folder

PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<|pad|>", "<pad>", "<unk>")


def unsloth():
    """Import Unsloth and return it.

    Its compiled code goes to a temporary folder of this process. By default it would go to the working
    folder, from which Unsloth also imports existing files.
    """
    if "UNSLOTH_COMPILE_LOCATION" not in os.environ:
        compiled = tempfile.mkdtemp(prefix="medkit-unsloth-")
        atexit.register(shutil.rmtree, compiled, ignore_errors=True)
        os.environ["UNSLOTH_COMPILE_LOCATION"] = compiled
    os.environ["UNSLOTH_COMPILE_LOCATION"] = os.path.abspath(os.environ["UNSLOTH_COMPILE_LOCATION"])
    # bitsandbytes warns that the hub has a faster kernel.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import unsloth

    return unsloth


def first_process() -> bool:
    """Whether this is rank 0 of the processes that torchrun or accelerate started."""
    return int(os.environ.get("RANK", 0)) == 0


def base_folder(base: str) -> str:
    """The argument of from_pretrained: a hub id or a model folder. InputError for any other folder."""
    if base == "smollm2":
        return str(smollm2.folder())
    if inputs.is_path(base):
        inputs.check_folder(base)
        return str(Path(base).expanduser())
    return base


def _locate(model: ModelSpec) -> tuple[str, str | None]:
    """The name for from_pretrained and, for a hub id, the revision."""
    name = base_folder(model.base)
    return name, None if Path(name).exists() else model.revision


def load(model: ModelSpec, *, gradient_checkpointing: bool = False):
    """(model, tokenizer) of the base, without an adapter. MedkitError if it cannot be loaded.

    The tokenizer comes from `load_tokenizer`, since Unsloth's may have another chat template.
    """
    fast = unsloth().FastLanguageModel
    import torch

    name, revision = _locate(model)
    try:
        loaded, _ = fast.from_pretrained(
            model_name=name,
            max_seq_length=model.max_length,
            load_in_4bit=model.load_in_4bit,
            revision=revision,
            use_gradient_checkpointing="unsloth" if gradient_checkpointing else False,
            use_safetensors=True,
            use_exact_model_name=True,  # not Unsloth's own copy of the model
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise load_error(model.base, error) from None
    cpu.compute_unpacked(loaded)
    tokenizer = load_tokenizer(model)
    loaded.config.pad_token_id = tokenizer.pad_token_id
    return loaded, tokenizer


def load_tokenizer(model: ModelSpec):
    """The base's tokenizer, with the recipe's chat template and, if possible, a pad token that is not an end
    token. With an end token as padding, a model never learns to stop.

    Raises MedkitError if it cannot be loaded, PromptError if its template cannot be used.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    name, revision = _locate(model)
    try:
        try:
            # From tokenizer.json only: Transformers 5 rebuilds some tokenizers, and R1's loses its spaces.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name, revision=revision)
        except (OSError, ValueError, TypeError):  # no tokenizer.json
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise load_error(model.base, error) from None
    if model.chat_template == "chatml":
        tokenizer.chat_template = prompts.CHATML
    set_pad_token(tokenizer, text_config(model).vocab_size)
    return tokenizer


def context_length(model: ModelSpec) -> int | None:
    """The base's maximum number of positions, for prompt and answer together; None if it has none."""
    return getattr(text_config(model), "max_position_embeddings", None)


def text_config(model: ModelSpec):
    """The configuration of the base's text model."""
    from transformers import AutoConfig

    name, revision = _locate(model)
    try:
        return AutoConfig.from_pretrained(name, revision=revision).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise load_error(model.base, error) from None


def load_error(base: str, error: BaseException) -> MedkitError:
    """The MedkitError for a library's error about a base."""
    return MedkitError(
        f"model {base} cannot be loaded ({first_line(error)}); check the name and the network, or use a "
        "complete model folder"
    )


def set_pad_token(tokenizer, vocab_size: int) -> None:
    """Choose a pad token that is not an end token and has an embedding among the `vocab_size` of the model.

    Candidates in order: the tokenizer's pad token, PAD_TOKENS, special tokens that the template does not use,
    BOS. If none is suitable, the pad token stays unchanged: only training needs one, and preflight checks it.
    """
    chat, vocabulary = prompts.ChatFormat.from_tokenizer(tokenizer), tokenizer.get_vocab()
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    unused = sorted(
        (t for t in special if t not in chat.example), key=lambda t: ("pad" not in t, -vocabulary[t])
    )
    end_tokens = (*chat.ends, tokenizer.eos_token)
    for token in (tokenizer.pad_token, *PAD_TOKENS, *unused, tokenizer.bos_token):
        if token in vocabulary and vocabulary[token] < vocab_size and token not in end_tokens:
            tokenizer.pad_token = token
            return


def attach_lora(model, lora: LoraSpec, *, seed: int, gradient_checkpointing: bool = False):
    """Add a new LoRA adapter to every module that the recipe names."""
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
    """The identity of a base that was loaded (see identities.of_base)."""
    return identities.of_base(base_folder(model.base), model.revision)


def remove_checkpoints(folder: Path) -> None:
    """Remove an arm's checkpoints. They are renamed first, so that a crash leaves none partially removed."""
    path, renamed = folder / "checkpoints", folder / ".checkpoints.old"
    shutil.rmtree(renamed, ignore_errors=True)
    if path.exists():
        path.rename(renamed)
        shutil.rmtree(renamed, ignore_errors=True)


def merge_adapter(model: ModelSpec, adapter: Path, folder: Path) -> None:
    """Load a base and write it with `adapter` merged, in 16 bit (see merging.merge_adapter)."""
    base, tokenizer = load(model)
    merging.merge_adapter(adapters.attach(base, adapter), tokenizer, folder)


@contextmanager
def for_inference(model):
    """Put the model into evaluation mode with a key-value cache; restore it afterwards.

    Raises MedkitError on a GPU if the adapter acts on the output layer, where Unsloth's decoding ignores
    it.
    """
    from peft.tuners.lora import LoraLayer

    if cpu.on_gpu() and isinstance(model.get_output_embeddings(), LoraLayer):
        raise MedkitError(
            "the adapter acts on lm_head, where Unsloth's decoding on a GPU ignores it; merge it with PEFT's "
            "merge_and_unload and evaluate the result"
        )
    fast = unsloth().FastLanguageModel
    was_training, use_cache = model.training, model.config.use_cache
    fast.for_inference(model)
    if cpu.on_gpu():  # otherwise Unsloth silently cuts prompts at the length of the training rows
        from unsloth.utils.packing import mark_allow_overlength

        mark_allow_overlength(model)
    model.config.use_cache = True
    try:
        with cpu.fused_lora(model):
            yield model
    finally:
        model.config.use_cache = use_cache
        if was_training:
            fast.for_training(model)


def use_adapter(model, folder: Path) -> None:
    """Load the weights in `folder` into the model's adapter."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    adapters.read_config(folder)
    mismatch = MedkitError(f"the adapter in {folder} does not fit this model; it belongs to another base")
    try:
        result = set_peft_model_state_dict(model, load_file(str(Path(folder) / "adapter_model.safetensors")))
    except RuntimeError:  # tensors of different sizes
        raise mismatch from None
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        raise mismatch


def save_adapter(model, tokenizer, folder: Path) -> None:
    """Write the adapter and the tokenizer into `folder`, which appears only when it is complete."""
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True)
        tokenizer.save_pretrained(temporary)
