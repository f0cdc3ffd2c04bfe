"""An answer's text as it is read: without thought and markup, up to the next question."""

import re
import unicodedata

# What thinking models write first: various tags, HuatuoGPT's headings, gpt-oss' channels.
_TAG = r"(?:think|thinking|thoughts?|reasoning|scratchpad|seed:think)"
_OPENS_OR_CLOSES = re.compile(
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

# `question`: a heading that asks; `token`: the end of a turn. The rest may also belong to an explanation.
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


def plain(text: str) -> str:
    """Full-width forms to ASCII (NFKC), line ends to \\n; letters of other scripts stay what they are."""
    text = re.sub("[\u00ad\u200b-\u200d\u2060\ufeff]", "", unicodedata.normalize("NFKC", text))
    return re.sub(r"\r\n?", "\n", text).strip()


def without_thought(text: str) -> str:
    """The text outside of thought: closed, never closed, or opened in the prompt and only closed here."""
    kept, thinking, end = [], False, 0
    for tag in _OPENS_OR_CLOSES.finditer(text):
        if not thinking:
            kept.append(text[end : tag.start()])
        if tag["closes"] and not thinking:
            kept = []
        thinking, end = tag["opens"] is not None, tag.end()
    answer = "".join(kept if thinking else [*kept, text[end:]]).strip()
    return answer[end_of(_ROLE, answer) :]


def end_of(pattern: re.Pattern[str], text: str, at: int = 0) -> int:
    """Where the pattern's match at `at` ends; `at` itself where it does not match."""
    match = pattern.match(text, at)
    return match.end() if match else at


def unmarked(text: str) -> str:
    """The text without Markdown, LaTeX and HTML; \\boxed{X} and <answer>X</answer> become "answer: X"."""
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


def key(text: str) -> str:
    """Text as it is compared: NFKC, case folded, blanks single, no marks around it."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s+", " ", folded).strip(" \n\t*_#\"'“”‘’`$()[]{}.,:;!?")
