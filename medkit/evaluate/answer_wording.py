"""How answers word a claim, and how they deny, doubt or take it back: the patterns of answer_claims.

Repetitions are bounded, so the time is linear in the length of the answer.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from medkit import pubmedqa
from medkit.evaluate.answer_text import plain, unmarked
from medkit.records import LETTERS


def _any_case(pattern: str) -> re.Pattern:
    return re.compile(pattern, re.IGNORECASE | re.MULTILINE)


# What follows a letter or an option and takes it back. "C, the others are wrong" takes nothing back.
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
# An option that only opens the answer is rejected by any negation: "Heparin isn't given here"
REJECTED = _any_case(
    rf"[^\w.\n]{{0,8}}{_OF_IT}(?:"
    rf"(?:is|are|was|were|seems|looks|as|(?:would|could|can|may|should) be)\b(?: \w+)? (?:{_NEGATION})\b"
    r"|(?:is|are|was|were|does|do|did|can|could|would|should)n['’]t\b|cannot be\b"
    r"|(?:can|could|would|should) not be\b|(?:does|do|did) not (?:apply|fit|work|help|match)\b)"
)
REJECTS = _any_case(rf"\b(?:{_NEGATION}|less|cannot|never|rather|rules? out)\b|n['’]t\b")
# The same in a word: "C) No.", "C. Incorrect.", "Yes. Actually no"
NO = re.compile(
    r"[\W_]{0,8}(?:actually\b|(?:wait|no|incorrect|wrong|false)\s*(?:[.,;!?)—–-]|$))", re.IGNORECASE
)
ASKED = _any_case(r"[^.;:!?\n]{0,200}\?|[^.;!?\n]{1,200}: no\b(?=\W*$)")  # "Aspirin?", "Heparin: no"
NO_ANSWER = _any_case(
    r"\b(?:cannot|can not|can['’]t|unable to|not able to|won['’]t|will not)\s+"
    r"(?:\w+ly )?(?:answer|say|tell|determine|decide|choose|provide|give)\b"
)
# Anywhere after the last claim: a change of mind without another claim
RECONSIDERED = _any_case(
    r"\b(?:wait\b[,.!—–-]|wait no\b|hmm\b|hold on\b|on second thought|let me (?:re|double)|my mistake"
    r"|scratch that|correction:)"
)
# How a thought without tags begins (the prompt opened it)
DELIBERATION = _any_case(r"\W*(?:okay|ok|alright|all right|hmm|let me|i need to|we need to)\b")

# Before a claim that is denied, doubted, asked for, or a first thought: "I don't think the answer", "each
# answer", "Is the answer", "if ..., then the answer", "at first the answer"
DENIED = re.compile(
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
JOINED = re.compile(r"(?:\b(?:or|nor|and)|\b[A-Z]\)?,)\s*$")  # "A, B or" C is correct
# Within a phrase that leads to no claim: "the answer could be", "answer explanation:"
HEDGED = _any_case(
    r"\b(?:neither|nor|either|between|if|or|cannot|choices|options|answers|could|might|may|unless"
    r"|explanations?|explained|rationales?|analysis|discussion)\b"
)
NEGATED = _any_case(r"\b(?:not|never|wrong|incorrect|except|unlikely|least)\b|n['’]t\b")
BUT = re.compile(r"\bnot \(?[A-Z]\)?,? but")  # "not C but D" is no hedge
NEGATIVE_QUESTION = _any_case(
    rf"\b(?:{_NEGATION}|except\w*|least|untrue|avoid\w*|never|exclu\w+|exception|contraindication)\b|n['’]t\b"
)
# "The most common virus is C": no claim of C
NAMED_BY_LETTER = _any_case(
    r"\b(?:hepatitis|influenza|vitamin|type|group|grade|class|stage|factor|subtype|virus|strain|category)\b"
)

# A letter at the beginning of a line, in a list on one line, and alone
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
ASIDE = re.compile(r"\b(?:not|than|unlike|versus|vs\.?|over|while|whereas|options?)\s*$", re.IGNORECASE)
JUDGED = re.compile(
    r"(?:^|[.:–—-]\s*|\()\s*(?:this is |it is |that is )?(?:the )?"
    r"(?:(?P<answer>(?:correct|right|best|most likely|most appropriate) (?:answer|choice|option))"
    r"|correct|right)"
    r"\s*(?:[.,;:!)]|$)|[✓✅✔]",
    re.IGNORECASE,
)
FIELD = _any_case(
    r"[\"'](?:\w{1,20}_)?(?:answer|choice|option|letter|prediction|decision)(?:_\w{1,20})?[\"']\s*:\s*[\"'\[]*(?=[\w(])"
)
CONCLUDES = re.compile(
    r"(?i:\b(?:which is|corresponds? to|corresponding to|match(?:es|ing)|points? to|supports?|favou?rs?"
    r"|indicates?|described by|therefore|thus|hence|so),? "
    r"(?:the )?(?:answer )?(?:option|choice) \(?)([A-Z])(?!\w)"
)
# "A patient": an article, no letter; "A is wrong": a letter
ALONE = re.compile(r"(?<![\w'’-])(?!A (?!(?:is|was|and|or|because) )[a-z])([A-Z])(?![\w'’-])")

OPENERS = re.compile(r"[ \t\"'“‘’(\[{]*")
# What may follow a letter that is an answer: not "A patient", "C-reactive", "D's", "B12"
AFTER = re.compile(
    r"\s*$|</|\s*[()\]},:;!?\"”|]|\s*\.(?!\w)|'(?!\w)|’(?!\w)|\s+[-–—]\s|\s*\n"
    r"|\s+(?:because|since|as|which|based|due|given|i\.e|explanation|rationale|reason)\b",
    re.IGNORECASE,
)
LOWERCASE_AFTER = re.compile(r"[)'’\"”]|[^\w\n]*(?:\n|$)")
# ... and an option's text: not "Aspirin, heparin" or "2.5" where "Aspirin" or "2" is an option
AFTER_TEXT = re.compile(
    r"[\"'”’)\]}]*(?:\s*$|\s*\n|</|\s*[.:](?!\w)|\s*[;!?()\[\]}]|\s[-–—]\s"
    r"|\s+(?:because|since|as|which|based|due|given|in this|for this)\b|(?P<comma>,)\s)",
    re.IGNORECASE,
)
LETTER_TOO = re.compile(  # "Heparin (C)"
    r"[\"'”’]*\s*,?\s*(?:[(\[](?:option |choice |answer )?([A-Z])[)\]]|\(?(?:option|choice) \(?([A-Z])\b)"
)
AND_ANOTHER = re.compile(
    r"[\s)\".]{0,4}(?:,|;|/|&|\+|\band\b|\bor\b|(?=[(]))(?:\s|and\b|or\b)*[(\"]{0,3}([A-Z])(?!\w)"
)
NUMBERING = re.compile(r"[.):]\s*\w")  # "1. The patient", where "1" is an option
GENUS = re.compile(r"\.\s+(?=[a-z])")  # "C. difficile"
HEADING = re.compile(r"\s*[:–—]|\s+-\s")  # "Age: 45 years", where "Age" is an option
LINE_ENDS = re.compile(r"[^\w\n]*(?:\n|$)")
BLANKS = re.compile(r"[\s)\].:,(-]*")
MARKS = re.compile(r"[^\w\n?]*")
SENTENCE = re.compile(r"[^.;\n]*")
OF_STATEMENTS = re.compile(r"\b[A-D] (?:and|&|or|only)\b")  # "A and C", as an option

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


class Patterns(NamedTuple):
    """What depends on an item's options."""

    listing: re.Pattern  # all letters one after the other, as an instruction gives them: "(A, B, C, or D)"
    texts: dict[str, re.Pattern]  # letter -> its option's text
    phrase: re.Pattern  # "the answer is", before a letter or an option's text
    verdict: re.Pattern  # "C (heparin) is the correct answer"


@lru_cache(maxsize=256)
def patterns(options: tuple[str, ...]) -> Patterns:
    letters = LETTERS[: len(options)]
    between = r"[ ,/|()\"']+(?:(?:or|and)\b[ ,/|()\"']*)?"
    listing = rf"[(\[]?\b{between.join(letters)}\b[)\]]?|\bA ?(?:-|–|through|to) ?{letters[-1]}\b"
    if options == pubmedqa.OPTIONS:
        listing += r"|(?i:\byes\b[ ,/|]+no\b[ ,/|]+(?:or |and )?maybe\b)"
    texts = dict(zip(letters, map(_spelled, options), strict=True))
    long = {letter for letter, option in zip(letters, options, strict=True) if len(option) > 2}
    target = rf"[\"'“‘(\[]*(?:(?-i:[A-Z](?!\w))|[a-z](?:[)'’\"”.:]|[^\w\n]*$)|{'|'.join(texts.values())})"
    phrase = (
        rf"(?<![\w-])(?:{'|'.join(_PHRASES)})(?:[ \t\"'“‘(\[:,-]*\b(?:{_FILLER})\b){{0,6}}[ \t:\"'“-]{{0,6}}"
        rf"(?:\s{{0,6}}\n\s{{0,6}}(?:option |choice )?)?(?={target})"
    )
    alone = r"(?:^|[.;:,!?]\s+|\b(?:thus|so|hence|therefore|but|though|although|while|that|only)[\s,]+)"
    named = "|".join(
        rf"(?P<{letter}>(?:\b(?:option|choice|answer|letter) [(\[]?(?-i:{letter})(?!\w)"
        rf"|(?<!\w)[(\[]?(?-i:{letter})[)\]]|{alone}(?-i:{letter})(?![\w-]))[)\].:]{{0,2}}(?:[\s(:,–-]{{0,3}}{text})?)"
        rf"|{alone}(?:the |an? )?(?P<{letter}_text>{text if letter in long else '(?!)'})"
        rf"(?:,? \(?(?:option |choice )?(?-i:(?P<{letter}_too>[A-Z]))\))?"
        for letter, text in texts.items()
    )
    return Patterns(
        re.compile(listing),
        {letter: re.compile(text, re.IGNORECASE) for letter, text in texts.items()},
        _any_case(phrase),
        _any_case(f"(?:{named}){_VERDICT}"),
    )


def _spelled(option: str) -> str:
    """A pattern for an option's text; one that never matches for a text without words."""
    words = unmarked(plain(option)).strip(" .,:;!?\"'“”").split()
    return r"\s+".join(map(re.escape, words)) + r"(?!\w)" if words else "(?!)"
