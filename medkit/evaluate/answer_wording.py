"""Regular expressions for answer_claims: how answers word, negate, hedge or withdraw a claim.

Repetitions are bounded, so matching takes time linear in the length of the answer.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from medkit import pubmedqa
from medkit.evaluate.answer_text import normalize, strip_markup
from medkit.records import LETTERS


def _any_case(pattern: str) -> re.Pattern:
    return re.compile(pattern, re.IGNORECASE | re.MULTILINE)


# After a letter or an option: the claim is withdrawn. "C, the others are wrong" withdraws nothing.
_NEGATION = r"not|incorrect|wrong|false|unlikely|inappropriate|contraindicated|harmful|dangerous"
_OF_IT = (
    r"(?:(?:but|however|although|though),? )?"
    r"(?:(?:it|this|that|which|answer|option|choice|statement)\s+){0,2}"
)
_RIGHT = r"(?:the )?(?:\w+ )?(?:correct|right|true|answer|choice|option|best)"
NOT_THE_ANSWER = _any_case(
    rf"[\W_]{{0,8}}{_OF_IT}(?:is|was|would be|as)"
    r"(?:(?: \w+){0,3} (?:wrong|incorrect)|(?:n['’]t| not)(?: \w+){0,3}) (?:answer|choice|option)\b"
)
WRONG = _any_case(
    rf"[\W_]{{0,8}}{_OF_IT}(?:(?:is|are|was|were|seems|looks|as|would be|must be) (?:(?!not\b)\w+ )?"
    rf"(?:wrong|incorrect|false|not {_RIGHT})|(?:is|was)n['’]t {_RIGHT}"
    r"|(?:cannot|can['’]t|can not) be (?:correct|right))\b"
)
# An option at the start of an answer is rejected by any negation: "Heparin isn't given here"
REJECTED = _any_case(
    rf"[^\w.\n]{{0,8}}{_OF_IT}(?:"
    rf"(?:is|are|was|were|seems|looks|as|(?:would|could|can|may|should) be)\b(?: \w+)? (?:{_NEGATION})\b"
    r"|(?:is|are|was|were|does|do|did|can|could|would|should)n['’]t\b|cannot be\b"
    r"|(?:can|could|would|should) not be\b|(?:does|do|did) not (?:apply|fit|work|help|match)\b)"
)
REJECTS = _any_case(rf"\b(?:{_NEGATION}|less|cannot|never|rather|rules? out)\b|n['’]t\b")
# Withdrawn in one word: "C) No.", "C. Incorrect.", "Yes. Actually no"
NO = re.compile(
    r"[\W_]{0,8}(?:actually\b|(?:wait|no|incorrect|wrong|false)\s*(?:[.,;!?)—–-]|$))", re.IGNORECASE
)
QUESTIONED = _any_case(r"[^.;:!?\n]{0,200}\?|[^.;!?\n]{1,200}: no\b(?=\W*$)")  # "Aspirin?", "Heparin: no"
NO_ANSWER = _any_case(
    r"\b(?:cannot|can not|can['’]t|unable to|not able to|won['’]t|will not)\s+"
    r"(?:\w+ly )?(?:answer|say|tell|determine|decide|choose|provide|give)\b"
)
# Anywhere after the last claim: the model reconsiders without another claim
RECONSIDERED = _any_case(
    r"\b(?:wait\b[,.!—–-]|wait no\b|hmm\b|hold on\b|on second thought|let me (?:re|double)|my mistake"
    r"|scratch that|correction:)"
)
# Start of reasoning without an opening tag (the prompt contains the tag)
DELIBERATION = _any_case(r"\W*(?:okay|ok|alright|all right|hmm|let me|i need to|we need to)\b")

# Before a claim that is negated, hedged, asked as a question, or a first guess: "I don't think the answer",
# "each answer", "Is the answer", "if ..., then the answer", "at first the answer"
DISCOUNTED = re.compile(
    r"(?:\b(?:incorrect|wrong|worst|not|never|no|if|unless|each|every|any|other|another|alternative|possible"
    r"|plausible|tempting|which|what|whose|than|one|first|second|next|previous)|n['’]t)(?: an?| the)?\s*$"
    r"|(?:\b(?:not|never|cannot|doubt|deny|unsure|whether|if|unless|false|unlikely|incorrect)|n['’]t)\b"
    r"[^.,;:!?\n]{0,25}$"
    r"|(?:^|[.;:!?\n])\s*(?:is|was|could|would|might|may|what|which)\b[^.;:!?\n]{0,12}$"
    r"|\bif\b[^.;!?\n]{0,150}\bthen(?: the)?\s*$"
    r"|\b(?:at first|initially|e\.g\.|for example|for instance|such as|some (?:may|might|would)|format)\b"
    r"[^.;!?\n]{0,60}$",
    re.IGNORECASE,
)
JOINED_BEFORE = re.compile(r"(?:\b(?:or|nor|and)|\b[A-Z]\)?,)\s*$")  # "A, B or" C is correct
# Within a phrase that makes no claim: "the answer could be", "answer explanation:"
HEDGED = _any_case(
    r"\b(?:neither|nor|either|between|if|or|cannot|choices|options|answers|could|might|may|unless"
    r"|explanations?|explained|rationales?|analysis|discussion)\b"
)
NEGATED = _any_case(r"\b(?:not|never|wrong|incorrect|except|unlikely|least)\b|n['’]t\b")
BUT = re.compile(r"\bnot \(?[A-Z]\)?,? but")  # "not C but D" is not negated
NEGATIVE_QUESTION = _any_case(
    rf"\b(?:{_NEGATION}|except\w*|least|untrue|avoid\w*|never|exclu\w+|exception|contraindication)\b|n['’]t\b"
)
# "The most common virus is C" does not claim option C
NAMED_BY_LETTER = _any_case(
    r"\b(?:hepatitis|influenza|vitamin|type|group|grade|class|stage|factor|subtype|virus|strain|category)\b"
)

# A letter on its own line, at the start of a line (LETTERED), within a line (INLINE)
BARE = _any_case(r"[\s\"'“‘(\[{<]*(?:(?:option|choice|letter)\s+)?[\s\"'(\[{]*([A-Za-z])[\s\"'”’)\]}.,:;!]*")
LETTERED = _any_case(
    r"^[ \t\"'“‘(\[]*(?:(?P<option>option|choice|answer choice)\s+[(\[]?)?(?P<letter>[A-Za-z])(?![\w'’])"
    r"(?P<mark>[)\].:,]*)[ \t]*(?P<dash>[-–—:](?=\s)|\()?[ \t]*(?P<rest>[^\n]*)"
)
BECAUSE = _any_case(r"(?:because|since|due to|explanation|rationale)\b")
EXPLAINED = _any_case(
    r"[^\w\n]*\n\W*(?:explanation|rationale|reason|justification|because|answer|question"
    r"|(?:this is )?the (?:correct|best))"
)
INLINE = re.compile(
    r"(?<![\w(])(?:\(?(?P<letter>[A-Z])\)(?!\w)|(?i:option|choice) \(?(?P<named>[A-Z])(?!\w))"
)
CONTRAST = re.compile(r"\b(?:not|than|unlike|versus|vs\.?|over|while|whereas|options?)\s*$", re.IGNORECASE)
MARKED_CORRECT = re.compile(
    r"(?:^|[.:–—-]\s*|\()\s*(?:this is |it is |that is )?(?:the )?"
    r"(?:(?P<answer>(?:correct|right|best|most likely|most appropriate) (?:answer|choice|option))"
    r"|correct|right)"
    r"\s*(?:[.,;:!)]|$)|[✓✅✔]",
    re.IGNORECASE,
)
JSON_FIELD = _any_case(
    r"[\"'](?:\w{1,20}_)?(?:answer|choice|option|letter|prediction|decision)(?:_\w{1,20})?[\"']\s*:\s*[\"'\[]*(?=[\w(])"
)
CONCLUSION = re.compile(
    r"(?i:\b(?:which is|corresponds? to|corresponding to|match(?:es|ing)|points? to|supports?|favou?rs?"
    r"|indicates?|described by|therefore|thus|hence|so),? "
    r"(?:the )?(?:answer )?(?:option|choice) \(?)([A-Z])(?!\w)"
)
# A standalone letter: "A is wrong", but not the article in "A patient"
ALONE = re.compile(r"(?<![\w'’-])(?!A (?!(?:is|was|and|or|because) )[a-z])([A-Z])(?![\w'’-])")

OPENERS = re.compile(r"[ \t\"'“‘’(\[{]*")
# What may follow an answer letter: excludes "A patient", "C-reactive", "D's", "B12"
AFTER_LETTER = re.compile(
    r"\s*$|</|\s*[()\]},:;!?\"”|]|\s*\.(?!\w)|'(?!\w)|’(?!\w)|\s+[-–—]\s|\s*\n"
    r"|\s+(?:because|since|as|which|based|due|given|i\.e|explanation|rationale|reason)\b",
    re.IGNORECASE,
)
AFTER_LOWERCASE = re.compile(r"[)'’\"”]|[^\w\n]*(?:\n|$)")
# What may follow an option's text: if "Aspirin" or "2" is an option, excludes "Aspirin, heparin" and "2.5"
AFTER_TEXT = re.compile(
    r"[\"'”’)\]}]*(?:\s*$|\s*\n|</|\s*[.:](?!\w)|\s*[;!?()\[\]}]|\s[-–—]\s"
    r"|\s+(?:because|since|as|which|based|due|given|in this|for this)\b|(?P<comma>,)\s)",
    re.IGNORECASE,
)
LETTER_AFTER_TEXT = re.compile(  # "Heparin (C)"
    r"[\"'”’]*\s*,?\s*(?:[(\[](?:option |choice |answer )?([A-Z])[)\]]|\(?(?:option|choice) \(?([A-Z])\b)"
)
JOINED_LETTER = re.compile(
    r"[\s)\".]{0,4}(?:,|;|/|&|\+|\band\b|\bor\b|(?=[(]))(?:\s|and\b|or\b)*[(\"]{0,3}([A-Z])(?!\w)"
)
NUMBERING = re.compile(r"[.):]\s*\w")  # "1. The patient", where "1" is an option
GENUS = re.compile(r"\.\s+(?=[a-z])")  # "C. difficile"
HEADING = re.compile(r"\s*[:–—]|\s+-\s")  # "Age: 45 years", where "Age" is an option
LINE_END = re.compile(r"[^\w\n]*(?:\n|$)")
SEPARATORS = re.compile(r"[\s)\].:,(-]*")
PUNCTUATION = re.compile(r"[^\w\n?]*")
SENTENCE = re.compile(r"[^.;\n]*")
COMBINATION = re.compile(r"\b[A-D] (?:and|&|or|only)\b")  # an option such as "A and C"

_QUALITY = (
    r"(?:correct|right|best|better|final|only|true|actual|selected|chosen|predicted|(?:most|more) \w+"
    r"|appropriate|likely|suitable|accurate|overall|single)"
)
_NOUN = (
    r"(?:answer|ans\b\.?|choice|option|decision|verdict|conclusion|selection|prediction|letter|pick|guess)"
)
_IS = r"(?:(?:is|are|was|would be|should be|must be|will be|remains)\b|[:=→]|[-–—](?=\s))"
_FILLER = (
    r"is|are|was|to this question|to the question|answer|option|choice|letter|key|the|most likely|likely"
    r"|probably|therefore|thus|clearly|definitely|indeed|hence|still|simply|correct|best|final|statement|labell?ed"
    r"|not \(?[A-Z]\)?,? but(?: rather)?"
)
_GAP = r"(?:,? [\w'’/-]+){0,10}?"  # "to this question", "in this patient"
_PHRASES = (
    rf"(?:{_QUALITY},? (?:and )?){{0,3}}{_NOUN}(?: (?:choice|option|key|letter|number))?(?!\w)"
    r"(?:\s?\((?![A-Z]\))[^()\n]{1,40}\))?"
    r"(?:(?! [(\[]?[A-D](?!\w))"  # "Option A is aspirin" describes it
    rf"{_GAP} ?[\"'”]*{_IS}|(?<=ans\.)|(?<=answer) (?=\()|(?<=^answer)(?: (?=[A-Z]\W*$)|[-–](?=[A-Z]))"
    r"|(?<=^ans) (?=[A-Z]))",
    rf"^(?:(?:the|my) )?(?:{_QUALITY} ){{0,3}}{_NOUN}(?: (?:choice|option|key))?(?=[^\w\n.]*\n)",  # a heading
    rf"(?P<wrong>(?:incorrect|false|wrong|untrue) (?:statement|one)|exception|odd one out){_GAP} ?{_IS}",
    rf"(?P<described>(?:most \w+|best|correct|right)\b{_GAP}) ?{_IS}",
    r"\b(?:i|we)(?:['’]d|['’]ll|['’]m)?"
    r"(?: (?:would|will|should|must|am|are|therefore|thus|have to|also|most likely)){0,2} "
    r"(?:choose|select|pick|opt for|vote for|go(?:ing)? (?:with|for)|answer"
    r"|(?:think|believe|guess|say) (?:that )?it(?:['’]s| is| would be))",
    r"^(?:choose|select|let['’]s go with)",
    r"(?:^|[.!\n] ?)(?:so|thus|therefore|hence)?,? ?(?P<it>it)(?:['’]s| is| must be| should be)\b",
    r"(?:^|[.!\n] ?)(?:so|thus|therefore|hence|in conclusion),?"
    r"(?= ?(?:option |choice |answer )?[(\[]?[A-Z][)\]]?(?:[.!:]|$|\)))",
)
_VERDICT = (
    r",?\)?\s+(?:is|are|would be|remains|must be|should be)\s+"
    r"(?:(?:therefore|thus|clearly|indeed|also|likely|probably|most likely(?= the)|more|hence|actually) )"
    rf"{{0,3}}(?:(?P<answer>the (?:{_QUALITY} ){{0,3}}(?:answer|choice|option)\b"
    rf"|(?:the |an? )?(?:{_QUALITY} ){{1,3}}(?:answer|choice|option|one|match|fit)\b)"
    r"|(?P<exception>the (?:exception|odd one out|(?:incorrect|false|untrue) (?:statement|one)))\b"
    r"|(?P<right>(?:correct|right)(?=\s*(?:[.,;:!)]|$)|\s(?:because|since|as|here|in this|for this)\b))"
    r"|(?P<described>(?:the )?"
    r"(?:best|correct|right|most (?:likely|appropriate|suitable|probable|accurate|consistent))"
    r"(?: [\w/'’-]+){0,14}?)"
    r"(?=\s*(?:[.,;:!)\n]|$)|\s(?:because|since|as|given|due|based)\b))"
)
LAST_WORD = re.compile(r"[\w'’-]+$")
UNFINISHED = re.compile(
    rf"\b(?:{_NOUN}|correct|best|most \w+)\b(?: [\w-]+){{0,6}}? ?"
    r"(?:is|:)\s*(?:the|option|most likely|\s)*\W*$"
    r"|\banswer\W*$|\b[A-D]\)?,?(?: an?d?| or?|,)\s*$|</\w*$",
    re.IGNORECASE,
)


class OptionPatterns(NamedTuple):
    """The patterns that depend on an item's options."""

    listing: re.Pattern  # all letters in sequence, as in an instruction: "(A, B, C, or D)"
    texts: dict[str, re.Pattern]  # option text by letter
    phrase: re.Pattern  # "the answer is", before a letter or an option's text
    verdict: re.Pattern  # "C (heparin) is the correct answer"


@lru_cache(maxsize=256)
def option_patterns(options: tuple[str, ...]) -> OptionPatterns:
    letters = LETTERS[: len(options)]
    separator = r"[ ,/|()\"']+(?:(?:or|and)\b[ ,/|()\"']*)?"
    listing = rf"[(\[]?\b{separator.join(letters)}\b[)\]]?|\bA ?(?:-|–|through|to) ?{letters[-1]}\b"
    if options == pubmedqa.OPTIONS:
        listing += r"|(?i:\byes\b[ ,/|]+no\b[ ,/|]+(?:or |and )?maybe\b)"
    texts = dict(zip(letters, map(_option_text, options), strict=True))
    long_options = {letter for letter, option in zip(letters, options, strict=True) if len(option) > 2}
    target = rf"[\"'“‘(\[]*(?:(?-i:[A-Z](?!\w))|[a-z](?:[)'’\"”.:]|[^\w\n]*$)|{'|'.join(texts.values())})"
    phrase = (
        rf"(?<![\w-])(?:{'|'.join(_PHRASES)})(?:[ \t\"'“‘(\[:,-]*\b(?:{_FILLER})\b){{0,6}}[ \t:\"'“-]{{0,6}}"
        rf"(?:\s{{0,6}}\n\s{{0,6}}(?:option |choice )?)?(?={target})"
    )
    before = r"(?:^|[.;:,!?]\s+|\b(?:thus|so|hence|therefore|but|though|although|while|that|only)[\s,]+)"
    named = "|".join(
        rf"(?P<{letter}>(?:\b(?:option|choice|answer|letter) [(\[]?(?-i:{letter})(?!\w)"
        rf"|(?<!\w)[(\[]?(?-i:{letter})[)\]]|{before}(?-i:{letter})(?![\w-]))[)\].:]{{0,2}}(?:[\s(:,–-]{{0,3}}{text})?)"
        rf"|{before}(?:the |an? )?(?P<{letter}_text>{text if letter in long_options else '(?!)'})"
        rf"(?:,? \(?(?:option |choice )?(?-i:(?P<{letter}_too>[A-Z]))\))?"
        for letter, text in texts.items()
    )
    return OptionPatterns(
        re.compile(listing),
        {letter: re.compile(text, re.IGNORECASE) for letter, text in texts.items()},
        _any_case(phrase),
        _any_case(f"(?:{named}){_VERDICT}"),
    )


def _option_text(option: str) -> str:
    """A pattern for an option's text. It never matches if the text has no words."""
    words = strip_markup(normalize(option)).strip(" .,:;!?\"'“”").split()
    return r"\s+".join(map(re.escape, words)) + r"(?!\w)" if words else "(?!)"
