"""The real Llama 3 tokenizer, from PyPI's llama-models, as a Hugging Face tokenizer."""

from importlib.util import find_spec
from pathlib import Path

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The order of Llama 3.1's 256 special tokens, from 128,000 on.
NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
# What Llama 3.1's own template makes of system, user and assistant turns without tools.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{% if m['role'] == 'system' %}Cutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n{% endif %}"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def llama3_tokenizer():
    """The tokenizer, or None where llama-models is not installed."""
    spec = find_spec("llama_models")
    if spec is None:
        return None
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    file = Path(next(iter(spec.submodule_search_locations))) / "llama3" / "tokenizer.model"
    specials = [NAMED.get(i, f"<|reserved_special_token_{i}|>") for i in range(256)]
    backend = TikTokenConverter(str(file), pattern=PATTERN, extra_special_tokens=specials).converted()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=specials[0],
        eos_token="<|eot_id|>",
        chat_template=TEMPLATE,
        model_max_length=131072,
    )
