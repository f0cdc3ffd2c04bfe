"""Chat templates of a dozen families in the shapes that public models use, each with a small tokenizer of its
family's kind: which control tokens there are, whether they swallow spaces, where a space becomes part of a
word."""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Family:
    template: str
    kind: str  # of tokenizer: bytes, metaspace, prepend, gemma
    specials: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str | None = None
    plain: tuple[str, ...] = ()  # added tokens that are not special
    rstrip: bool = False  # control tokens swallow the white space after them
    ends: str = ""  # the token that ends a turn; "" for eos


ALTERNATE = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must take turns, the user first') }}{% endif %}"
)
LLAMA_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
# The system turn is always there, with the date, and the system text is taken out of the messages.
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}DATE{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
LLAMA_FIXED = LLAMA.replace("DATE", "{%- set date_string = '26 Jul 2024' %}")
LLAMA_DATED = LLAMA.replace(
    "DATE",
    "{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}",
)
# Another name for the assistant, no system turn, text trimmed.
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('There is no system role here') }}{% endif %}"
    "{% for m in messages %}"
    + ALTERNATE
    + "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# The system text opens the first user turn; contents may be lists of parts.
GEMMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% if messages[0]['content'] is string %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% else %}{% set first = messages[0]['content'][0]['text'] + '\n\n' %}{% endif %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}" + ALTERNATE + "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
# No system turn, and nothing but words around a turn; the space before an answer is part of its first word.
MISTRAL1 = (
    "{{ bos_token }}{% for m in messages %}" + ALTERNATE + "{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + eos_token }}{% else %}"
    "{{ raise_exception('user and assistant only') }}{% endif %}{% endfor %}"
)
# The system text is shown before the last user turn, where that is the last turn: never in a training row.
MISTRAL3 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    "{{ bos_token }}{% for m in rest %}" + ALTERNATE + "{% if m['role'] == 'user' %}"
    "{% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
# The same before the last user turn, wherever that is, and no spaces.
TEKKEN = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    "{% set users = rest | selectattr('role', 'equalto', 'user') | list %}"
    "{{ bos_token }}{% for m in rest %}" + ALTERNATE + "{% if m['role'] == 'user' %}"
    "{{ '[INST]' }}{% if system is defined and m == users[-1] %}{{ system + '\n\n' }}{% endif %}"
    "{{ m['content'] + '[/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
TEKKEN_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + m['content'] + '[/SYSTEM_PROMPT]' }}{% elif m['role'] == 'user' %}"
    "{{ '[INST]' + m['content'] + '[/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_TOKENS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
# A system turn of its own where there is none.
QWEN25 = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a model.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) or m.role == 'assistant' %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
# Thought is taken out of what has been said and shown, empty or not, with the answers to the last question.
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {%- set content = m.content %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
# The block is in the prompt, and nowhere in what has been said.
HYBRID = """{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content.split('</think>')[-1].strip() + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' + ('<think>\\n' if enable_thinking else '<think>\\n\\n</think>\\n\\n') }}
{%- endif %}"""
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# The header of the answer belongs to the question; a system text is dropped without a word.
PHI3_OLD = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '<|user|>\n' + m['content'] + '<|end|>\n<|assistant|>\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI3_TOKENS = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|end|>", "<|system|>", "<|user|>")
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
# Headers in plain characters, and no end after a question.
OLMO2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + m['content'] + eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% else %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
# The system text stands bare; what was thought is cut off; the question ends with an open block of thought.
R1 = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = m['content'] %}{% endif %}{% endfor %}{{ bos_token + ns.system }}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{% set content = m['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
R1_TOKENS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a small model.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINK = ("<think>", "</think>")
LLAMA_ENDS = ("<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>")
FAMILIES = {
    "llama-3.1": Family(LLAMA_FIXED, "bytes", LLAMA_TOKENS, *LLAMA_ENDS),
    "llama-3.2": Family(LLAMA_DATED, "bytes", LLAMA_TOKENS, *LLAMA_ENDS[:2]),  # and 3.3; no pad token
    "gemma-2": Family(GEMMA2, "gemma", GEMMA_TOKENS, "<bos>", "<eos>", "<pad>", ends="<end_of_turn>"),
    "gemma-3": Family(GEMMA3, "gemma", GEMMA_TOKENS, "<bos>", "<eos>", "<pad>", ends="<end_of_turn>"),
    "mistral-v0.1": Family(MISTRAL1, "prepend", MISTRAL_TOKENS[:3], "<s>", "</s>"),
    "mistral-v0.3": Family(MISTRAL3, "metaspace", MISTRAL_TOKENS, "<s>", "</s>"),
    "mistral-nemo": Family(TEKKEN, "bytes", (*MISTRAL_TOKENS, "<pad>"), "<s>", "</s>", "<pad>"),
    "mistral-tekken": Family(TEKKEN_SYSTEM, "bytes", (*MISTRAL_TOKENS, "<pad>"), "<s>", "</s>", "<pad>"),
    "qwen2.5": Family(QWEN25, "bytes", QWEN_TOKENS, None, "<|im_end|>", "<|endoftext|>"),
    "qwen3": Family(QWEN3, "bytes", QWEN_TOKENS, None, "<|im_end|>", "<|endoftext|>", THINK),
    "hybrid": Family(HYBRID, "bytes", QWEN_TOKENS, None, "<|im_end|>", "<|endoftext|>", THINK),
    "phi-3": Family(
        PHI3, "prepend", PHI3_TOKENS, "<s>", "<|endoftext|>", "<|endoftext|>", rstrip=True, ends="<|end|>"
    ),
    "phi-3-old": Family(
        PHI3_OLD, "prepend", PHI3_TOKENS, "<s>", "<|endoftext|>", "<|endoftext|>", rstrip=True, ends="<|end|>"
    ),
    "phi-4": Family(
        PHI4, "bytes", (*QWEN_TOKENS, "<|im_sep|>", "<|dummy_85|>"), None, "<|im_end|>", "<|im_end|>"
    ),
    "olmo-2": Family(
        OLMO2, "bytes", ("<|endoftext|>", "<|pad|>"), "<|endoftext|>", "<|endoftext|>", "<|pad|>"
    ),
    "r1-distill": Family(
        R1, "bytes", (*R1_TOKENS, "<|vision_pad|>"), R1_TOKENS[0], R1_TOKENS[1], R1_TOKENS[1], THINK
    ),
    "smollm2": Family(SMOLLM2, "bytes", QWEN_TOKENS, "<|im_start|>", "<|im_end|>", "<|endoftext|>"),
}

# Enough for some hundred merges: " C", "?\n" and "\n\n" are tokens where a family's rules let them be.
CORPUS = (
    "Question:\nWhich is it?\n\nOptions:\nA) one\nB) two\nC) three\nD) four A B C D the A the B the C the D",
    "Answer: A) one Answer: B) two Answer: C) three Answer: D) four (A) (B) (C) word y. word? word.\n",
    "[INST] word ?[/INST] A [INST] word ? [/INST] B user assistant system model |>\nA |>\nB |>\nC |>\nD",
    "word?\n<|user word.\n<|system",
) * 3
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _backend(kind: str):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "bytes":  # Llama 3, Qwen, Phi-4, OLMo 2, Tekken: words with their space, marks with line feeds
        backend, alphabet = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        first = []
    else:  # SentencePiece: spaces are written as a letter; what is not in the vocabulary goes in bytes
        first = [f"<0x{i:02X}>" for i in range(256)]
        backend, alphabet = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>")), []
        space = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if kind == "metaspace":
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        elif kind == "prepend":
            backend.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
        else:
            backend.normalizer = normalizers.Replace(" ", "▁")
        backend.decoder = decoders.Sequence(space if kind == "gemma" else [*space, decoders.Strip(" ", 1, 0)])
    training = Tokenizer(models.BPE(byte_fallback=bool(first), unk_token="<unk>" if first else None))
    training.pre_tokenizer = backend.pre_tokenizer
    if first:  # SentencePiece learns no token across a space or a line
        training.normalizer = normalizers.Replace(" ", "▁")
        training.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁\n]*"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        initial_alphabet=sorted(alphabet),
        special_tokens=["<unk>", *first] if first else [],
        show_progress=False,
    )
    training.train_from_iterator(CORPUS, trainer)
    backend.model = training.model
    return backend


@cache
def _saved(kind: str) -> str:
    return _backend(kind).to_str()


def make(name: str):
    """The family's tokenizer with its template."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    family = FAMILIES[name]
    backend = Tokenizer.from_str(_saved(family.kind))
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False, rstrip=family.rstrip) for token in family.specials]
    )
    runs = ("\n", "\n\n") if family.kind == "gemma" else ()
    backend.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in (*family.plain, *runs)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        unk_token="<unk>" if "<unk>" in family.specials else None,
        chat_template=family.template,
        model_max_length=4096,
    )
