"""Cleans the text of a model's answer: normalization, reasoning and markup removed."""

import re
import unicodedata

# Delimiters of reasoning: tags of various models, HuatuoGPT's headings, gpt-oss channels.
_TAG = r"(?:think|thinking|thoughts?|reasoning|scratchpad|seed:think)"
_REASONING_TAG = re.compile(
    rf"(?P<opens><\|?(?:begin_of_)?{_TAG}\|?>|\[think\]|◁think▷|<unused94>|<\|channel\|>analysis(?:<\|message\|>)?"
    r"|\A\s*#+ *thinking *\n|\A(?-i:analysis(?=[A-Z])))"
    rf"|(?P<closes></{_TAG}>|<\|end_of_{_TAG}\|>|\[/think\]|◁/think▷|<unused95>|(?-i:assistantfinal)"
    r"|<\|channel\|>final(?:<\|message\|>)?|^#+ *final response *\n)",
    re.IGNORECASE | re.MULTILINE,
)
_ROLE = re.compile(
    r"(?:\s|<\|[^|>\n]{1,40}\|>|</?s>|\[/?INST\]|(?:assistant|ai|bot|model)\b\s*:?\s*\n|assistant:)*",
    re.IGNORECASE,
)

# Where a model may start to invent the next question. `question`: a heading such as "Question 2:". `token`:
# the end of a turn. The other matches may also occur in an explanation.
NEXT_QUESTION = re.compile(
    r"(?P<question>^[^\w\n<\[]{0,8}(?:(?:next|new|another|follow-?up|similar|practice) )?"
    r"(?:questions?|q|instructions?|input|human|user|exercise)\b[ \t]*(?:no\.?|number|\#)?[ \t]*\d{0,4}"
    r"[^\w\n]{0,3}(?:[:.)]|$))"
    r"|(?P<token><\|(?:im_start|im_end|eot_id|start_header_id|endoftext|end|user|system)\|>|</?s>|\[/?INST\]"
    r"|<(?:start|end)_of_turn>)"
    r"|^[^\w\n]{0,8}(?:"
    r"(?:problem|context|passage|case|example|scenario|patient|abstract|task)\b[ \t]*\d{0,4}[^\w\n]{0,3}:"
    r"|(?:\d{1,3}[.)]\s*)?an? \d{1,3}[- ](?:year|month|week|day|hour)|you are an? "
    r"|(?:which|what)\b[^\n]{10,400}\?\s*$)",
    re.IGNORECASE | re.MULTILINE,
)

_WRAPPED = r"(?:final_?)?(?:answer|choice|option)"
_MARKUP = [
    (re.compile(pattern, re.IGNORECASE | re.MULTILINE), plain)
    for pattern, plain in (
        (r"</?(?:b|strong|em|i|u|p|span|div|br|h\d|li|ul|ol)(?: [^>\n]{0,80})?/?>", ""),
        (r"\\(?:text|mathrm|mathbf|textbf|mathsf)\{([^{}\n]*)\}", r"\1"),
        (r"\A[\s$\\()\[\]]*\\boxed\{([^{}\n]*)\}[\s$\\()\[\].]*\Z", r"\1"),
        (r"\\boxed\{([^{}\n]*)\}?", r" answer: \1\n"),
        (rf"<{_WRAPPED}>", "answer: "),
        (rf"</{_WRAPPED}>", "\n"),
        (r"[*`$]|~~|(?<!\w)_+|_+(?!\w)|\\[()\[\]]", ""),
        (
            r"^[ \t]*(?:#+|[>•]|[-–—+](?=[ \t]+\D)|\d{1,2}[.)](?=\s*(?:option |choice )?\(?[A-Z][).:]))"
            r"[ \t]+(?!\d)",
            "",
        ),
    )
]


def normalize(text: str) -> str:
    """NFKC-normalized text without zero-width characters, with \\n line endings and no surrounding space."""
    text = re.sub("[\u00ad\u200b-\u200d\u2060\ufeff]", "", unicodedata.normalize("NFKC", text))
    return re.sub(r"\r\n?", "\n", text).strip()


def strip_reasoning(text: str) -> str:
    """Remove reasoning, whether closed, unclosed, or opened in the prompt and only closed in the answer."""
    kept, in_reasoning, end = [], False, 0
    for tag in _REASONING_TAG.finditer(text):
        if not in_reasoning:
            kept.append(text[end : tag.start()])
        if tag["closes"] and not in_reasoning:
            kept = []
        in_reasoning, end = tag["opens"] is not None, tag.end()
    answer = "".join(kept if in_reasoning else [*kept, text[end:]]).strip()
    return answer[match_end(_ROLE, answer) :]


def strip_markup(text: str) -> str:
    """Remove Markdown, LaTeX and HTML; \\boxed{X} and <answer>X</answer> become "answer: X"."""
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


def comparison_key(text: str) -> str:
    """The text for comparison: NFKC, case-folded, single spaces, no surrounding punctuation or markup."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s+", " ", folded).strip(" \n\t*_#\"'“”‘’`$()[]{}.,:;!?")


def match_end(pattern: re.Pattern[str], text: str, start: int = 0) -> int:
    """Where the pattern's match at `start` ends; `start` if it does not match."""
    match = pattern.match(text, start)
    return match.end() if match else start
