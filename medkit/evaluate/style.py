"""Style markers of answers by regular expressions: formatting, disclaimers, refusals and referrals.

A marker is present or absent in an answer; models and physicians are treated alike. Repetitions are bounded,
so matching takes time linear in the length of the answer.
"""

import re
import unicodedata

_PHYSICIANS = (
    r"(?:doctors?|physicians?|specialists?|clinicians?|(?:\w{1,12} )?surgeons?|dentists?|pa?ediatricians?"
    r"|psychiatrists?|therapists?|midwi(?:fe|ves)|pharmacists?|gps?|\w{2,20}ologists?|orthopa?edist"
    r"|obstetricians?|dieti[ct]ians?|(?:medical|health ?care) (?:provider|professional|attention|help|care)s?"
    r"|(?:primary )?care providers?|emergency (?:room|department|care|services|help)|er|hospital|clinic"
    r"|urgent care|ambulance|whoever prescribed|911|112)"
)
_CANNOT = (
    r"(?:can't|cannot|can not|won't|will not"
    r"|unable to|not able to|not allowed to|not comfortable|not qualified to)"
)
_OPINION = r"(?:medical |professional )?(?:advice|diagnos[ie]s|opinion|answer|information|recommendations?)"


def _any(*patterns: str) -> re.Pattern:
    return re.compile("|".join(patterns), re.IGNORECASE | re.MULTILINE)


_ITEM = r"^[ \t]*(?:[-*•–]|\d{1,2}[.)])[ \t]+\S"

# name -> (description, pattern)
MARKERS: dict[str, tuple[str, re.Pattern]] = {
    "list": (
        "two or more lines that begin with a bullet or a number",
        _any(rf"{_ITEM}(?s:.*?){_ITEM}"),
    ),
    "bold": (
        "Markdown bold: **text** or __text__",
        _any(r"\*\*(?=[^\s*])[^*\n]{1,300}\*\*", r"(?<!\w)__(?=[^\s_])[^_\n]{1,300}__(?!\w)"),
    ),
    "heading": (
        "a Markdown heading (# to ######), or a line with only bold text",
        _any(r"^#{1,6}[ \t]+\S", r"^[ \t]*\*\*[^*\n]{1,200}\*\*:?[ \t]*$"),
    ),
    "disclaimer": (
        "states that it is not a physician, not medical advice, or only general information",
        _any(
            r"\bas an? (?:\w{1,12} )?(?:ai|artificial intelligence|language model|virtual assistant)\b",
            r"\bi(?:'m| am) (?:just |only )?an? (?:ai|artificial intelligence|language model|chatbot)\b",
            r"\bi(?:'m| am) not (?:a|your) (?:\w{1,12} )?(?:doctor|physician|clinician)\b",
            r"\bi(?:'m| am) not (?:a|your) (?:medical|health ?care) (?:professional|provider)\b",
            r"\b(?:not|no|isn't|never) (?:\w{1,12} ){0,4}(?:substitute|replacement)s? for\b",
            r"(?:\bnot|\bnever|n't) replace\b[^.!?\n]{0,40}"
            r"\b(?:advice|diagnosis|care|consultation|examination)\b",
            r"\bnot (?:\w{1,12} ){0,2}(?:medical|professional) advice\b",
            rf"{_CANNOT} (?:\w{{1,12}} ){{0,2}}(?:provide|give|offer|make) (?:\w{{1,12}} ){{0,3}}"
            r"(?:medical advice|diagnos[ie]s)\b",
            r"\b(?:informational|educational|information) purposes\b",
            r"\bgeneral (?:medical |health )?information\b",
        ),
    ),
    "refusal": (
        "declines all or part of the answer: cannot help, advise, diagnose, give an opinion, ...",
        _any(
            rf"\b(?:i|we)(?:'m| am|'re| are)? {_CANNOT}(?: \w{{1,12}}){{0,3}}? "
            r"(?:(?:provide|help|assist|answer|advise|discuss|comply|fulfil|diagnose|prescribe)\b"
            rf"|(?:giv|offer|mak)(?:e|ing)? (?:\w{{1,12}} ){{0,3}}{_OPINION}\b)",
            r"\bi must (?:respectfully )?decline\b",
        ),
    ),
    "referral": (
        "sends the patient to a physician, another professional or emergency care",
        _any(
            r"(?<!\bi )(?<!not )(?<!n't )(?<!not need to )(?<!n't need to )(?<!not have to )(?<!n't have to )"
            r"\b(?:see|seeing|ask|call|meet|visit(?:ing)?|contact(?:ing)?|consult(?:ing)?"
            r"|consultation (?:with|from)|(?:talk|speak)(?:ing)? (?:to|with)|seek(?:ing)?"
            r"|follow(?:ing)?[- ]up with|appointment with|check with|be seen by"
            r"|(?:examin|evaluat|assess|check|review)\w{0,5} by|get in touch with|reach out to"
            r"|refer(?:red|ral)? to|(?:go|rush|drive) to|take (?:him|her|them|it) to|book"
            r"|(?:decided|judged) by)\b[^.!?\n]{0,50}?\b" + _PHYSICIANS + r"\b",
            r"(?<!not )(?<!n't )(?<!not need to )(?<!n't need to )\b(?:make|book|schedule) an appointment\b",
        ),
    ),
}


def markers(text: str) -> dict[str, bool]:
    """Whether the text has each of MARKERS."""
    plain = text.replace("’", "'").replace("\r\n", "\n").replace("\r", "\n")
    return {name: bool(pattern.search(plain)) for name, (_, pattern) in MARKERS.items()}


def word_count(text: str) -> int:
    """Number of words, separated by whitespace."""
    return len(text.split())


def in_another_script(text: str) -> bool:
    """Whether fewer than half of the letters are Latin; similarity to an English reference is then
    meaningless."""
    letters = [character for character in text if character.isalpha()]
    latin = sum("LATIN" in unicodedata.name(letter, "") for letter in letters)
    return 2 * latin < len(letters)
