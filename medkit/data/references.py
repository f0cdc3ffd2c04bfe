"""What is wrong with a physician's answer in the consumer data sets, where its text shows it."""

import re
from difflib import SequenceMatcher

# The site's name, put by the upstream over other text: "the anti-tubercular ChatDoctor.", "cougChatDoctores".
SITE = re.compile(r"(?i)chat ?doctor")
# What it is a greeting or a signature after; anywhere else it replaces words.
GREETED = re.compile(
    r"(?i)(wel+come|hank|cellophane|\b(asking|using|choosing|contact\w*|consulting|posting|writing|trusting|visiting|"
    r"query|question|am)\b)[^.!?]{0,45}$|(^|[.!?,:;*)-])\s*$|\b(regards|wishes|sincerely|truly|healthy?|luck|care)\W*$"
)
GLUED = re.compile(r"[a-z]$"), re.compile(r"^[a-z]")  # the word's rest before and after the name


def names_site(*texts: str) -> str:
    """Why a row that names the site cannot be used: "" for one that does not."""
    why = ""
    for text in texts:
        for found in SITE.finditer(text):
            before, after = text[: found.start()], text[found.end() :]
            signed = re.search(r"health(y|\s)$", before, re.IGNORECASE) and not after.strip(" .,MD")
            glued = GLUED[0].search(before) or GLUED[1].search(after)
            if not signed and (glued or not GREETED.search(before)):
                return "words lost to the site's name"
            why = "greets or signs in the site's name"
    return why


_ASK = (
    r"\b(consult|revert|follow[- ]?up|contact|write|reach|ask|talk|post|get back|discuss|approach|schedule|"
    r"book|visit|send)\b"
)
_HERE = (
    r"\b((on|in|at|through|via|to) (this|our|my) (web ?site|site|forum|portal|platform|profile|page|app)|"
    r"(premium|direct) (question|query|questions|queries))\b"
)
_SEEK = r"\b(contact|consult\w*|counsell?ing|appointment|ask|book|question)\b"
ADVERTISING = re.compile(
    # "For more information consult a dentist online -->", mostly without a full stop
    rf"(?i)(?:(?<=[.?!:;\n])|^)[^.?!:;\n]{{0,80}}?{_ASK}[^.?!\n]{{0,120}}?\bonline\b[ .]*"
    r"(-+>( *https?:\S+)?)?(?=\s*$|\s+[A-Z]|\n)|"
    # "Please post a direct question to me on this website."
    rf"(?:(?<=[.?!\n])|^)[^.?!\n]*{_ASK}[^.?!\n]*?{_HERE}[^.?!\n]*[.?!]?|"
    # "For counselling visit http://..."
    rf"(?:(?<=[.?!\n])|^)[^.?!\n]*{_SEEK}[^.?!\n]*?((https?://|www\.)\S+|bit\.ly\S*)"
)


def without_advertising(reference: str) -> tuple[str, bool]:
    """The answer without the sentences that sell the site's services, and whether there were any."""
    left, cuts = ADVERTISING.subn("", reference)
    return left.strip(), cuts > 0


ATTACHMENT = re.compile(r"(?i)\(attachments? removed[^)]*\)")
SENTENCE_END = re.compile(r"(?<=[.?!])(?<!\b[DM]r\.)\s+|(?<=[a-z])[.?!]+(?=[A-Z])|\s*\n+\s*")
_TO_WHOM = (
    r"and|dear|there|again|all|sir|madam|mam|ma['’]?am|user|patient|friend|mr|mrs|ms|miss|dr|doctor|welcome|to|"
    r"the|our|this|service|forum|site|website|back|for|of|in|at|on|your|query|question|asking|posting|writing|us"
)
FORMULA = re.compile(
    rf"(?i)(hi+|hello|hallow?|hey|dear|greetings|namaste|welcome|good (morning|day|evening|afternoon))"
    rf"([\s,.]+({_TO_WHOM}))*([\s,]+(mr|mrs|ms|miss|dr|dear)[\s.]+\w+)?|"
    r"(please )?take (good )?care( of \w+)?|stay (safe|healthy|well)|all the best|good luck|get well soon|"
    r"god bless.{0,20}|have a \w+ .{0,20}|(with )?((best|kind|warm|many) )*(regards|wishes)\b.{0,40}|"
    r"(yours )?(truly|sincerely|faithfully)\b.{0,40}|"
    r"(please |kindly |do |if you .{0,60}? )*(let me know|feel free|do not hesitate|don['’]t hesitate|"
    r"write back|(revert|get) back (if|for|in case))\b.*|is there anything else.*|"
    r"(i (am|will be|would be|['’]m) )?(happy|glad|available) (to help|for further).*|anytime"
)
# What begins like a formula may go on to say something.
OPENING = re.compile(
    r"(?i)((hi|hello|dear)( \w+)?[\s,]+)?(many )?thank(s|ing)?( you)?\b[^,;:]{0,90}|"
    r"(i|we)?(['’]ve)?( have| had| can| could| do| fully| completely| carefully| just)*\s*(gone through|"
    r"went through|read|seen|viewed|reviewed|noted|studied|received|understood|understand|appreciate)\b.*|"
    r"(i |we )?(really )?(hope|wish|trust)\b.{0,120}"
)
SUBSTANCE = re.compile(
    r"(?i)\b(suggest|advi[sc]e|recommend|explain|needs?|should|must|take|apply|avoid|start|stop(ped)?|because|"
    r"due to|caused?|normal|appears?|seems?|looks?|shows?|suspect|suffer\w*|diagnos\w+|treat\w*|tests?|"
    r"likely|as per|you (are|have|may|can|could)|it (is|may|can|could)|this (is|may|can)|"
    r"there (is|are)|according|\d+)\b"
)


def says_nothing(reference: str) -> bool:
    """Whether the answer is nothing but greetings, thanks, good wishes and "I have read your query"."""
    sentences = SENTENCE_END.split(ATTACHMENT.sub("", reference))
    said = filter(None, (sentence.strip(" \t.,;:!?-*~\"'") for sentence in sentences))
    return all(FORMULA.fullmatch(s) or (OPENING.fullmatch(s) and not SUBSTANCE.search(s)) for s in said)


# Signs of the spelling corrector that went over HealthCareMagic: the site's opening words run together
# ("Degree understand" was "Dear, I understand"), a word taken apart ("ch elation"), a dose after a verb ("Tab
# For can 150 mg" was Forcan).
_OPENS = r"hi|hello|dear|yes|ok|i|we|and|can|do|fully|completely|well|really|totally|truly"
CORRECTED = re.compile(
    rf"(?i)^\W*(?!({_OPENS})\b)[A-Za-z]+ understand your|(?-i:T) hank|^\W*\w*phane you\b|"
    r"(?<![\w'’-])(?<!\d )(ch|sh|gh|wh) [a-z]{3,}|"
    r"\b(can|could|may|might|will|would|shall|he|she|they|we)\s\d+([.,]\d+)?\s?(mg|mcg|ml|g|gm|units?)\b"
)
WORD = re.compile(r"[A-Za-z]{6,}")
PAIR = re.compile(r"(?=\b([A-Za-z]{6,})\s+([A-Za-z]{3,}))")  # a word and the one after it
ALIKE = 0.7  # of SequenceMatcher: noriday and holiday have 0.71


def words_replaced(query: str, reference: str) -> bool:
    """Whether the answer shows that a spelling corrector has put other words over its own.

    Besides its signs: a word of the patient's has become a similar one in the answer, in the same place
    (before the same word) or with a capital inside a sentence, as a medicine's name that became a country's.
    """
    if CORRECTED.search(reference):
        return True
    asked = {word.lower() for word in WORD.findall(query)}
    said = {word.lower() for word in WORD.findall(reference)}
    pairs = {(word.lower(), after.lower()) for word, after in PAIR.findall(query)}
    for found in WORD.finditer(reference):
        word = found[0].lower()
        if word in asked:
            continue
        after = re.match(r"\s+([A-Za-z]{3,})", reference[found.end() :])
        inside = re.search(r"[a-z,] +$", reference[: found.start()]) and re.fullmatch("[A-Z][a-z]+", found[0])
        for other in asked - said:
            in_place = inside or (after and (other, after[1].lower()) in pairs)
            # Words that begin alike are two forms of one word.
            if in_place and word[:4] != other[:4] and SequenceMatcher(None, word, other).ratio() >= ALIKE:
                return True
    return False
