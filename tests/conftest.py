"""What several test files share: a tiny random Llama made on the spot, and the folder of real rows."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # a core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.fsync = lambda _: None  # tests end no machine, and on a busy disk it takes most of their time

import pytest

REPO = Path(__file__).resolve().parents[1]
REAL_DATA = REPO.parent / "shared" / "data"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def make_tokenizer():
    """A byte-level tokenizer with Llama 3's message format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|bos|>", "<|eot_id|>", "<|pad|>", "<|start_header_id|>", "<|end_header_id|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet + specials)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|bos|>",
        eos_token="<|eot_id|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|start_header_id|>", "<|end_header_id|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )


def make_tiny_llama(hidden_size: int = 64, layers: int = 2):
    """A random Llama in float32 over a byte-level vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


@pytest.fixture(scope="session")
def tiny_llama():
    """(model, tokenizer): do not train it in place; take `make_tiny_llama` for that."""
    return make_tiny_llama()


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory, tiny_llama):
    """The same, saved as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    model, tokenizer = tiny_llama
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_run_folder(tmp_path_factory):
    """A run `tiny`: base, Med-Mix and Med-Nirvana of random adapters, and answers of at most eight tokens.

    Its output layer is 8 times a random model's, so that letters are about as far apart as a real model's.
    """
    import tiny_run

    base = tmp_path_factory.mktemp("base")
    model, tokenizer = make_tiny_llama()
    model.lm_head.weight.data.mul_(8)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    settings = "model.max_length=512;consumer.max_new_tokens=8"
    return tiny_run.write_run(tmp_path_factory.mktemp("results"), base, settings).folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not REAL_DATA.is_dir():
        pytest.skip("real rows of the datasets are not beside this checkout")
    return REAL_DATA
