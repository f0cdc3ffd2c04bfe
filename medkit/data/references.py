"""Detects damaged physician answers in the consumer data sets."""

import re
from difflib import SequenceMatcher

# The site's name, which upstream substituted for other text: "the anti-tubercular ChatDoctor.",
# "cougChatDoctores".
SITE = re.compile(r"(?i)chat ?doctor")
# Text before the name that makes it a greeting or a signature. Elsewhere the name replaces words.
GREETED = re.compile(
    r"(?i)(wel+come|hank|cellophane|\b(asking|(?<!start )using|choosing|contact\w*|consulting|posting|"
    r"writing|trusting|visiting|query|question|am)\b)[^.!?]{0,45}$|(^|(?<!\d)\.|[!?:;*)-])\s*$|"
    r"\b(regards|wishes|sincerely|truly|healthy?|luck|care)\W*$"
)
WORD_BEFORE, WORD_AFTER = re.compile(r"[a-z]$"), re.compile(r"^[a-z]")  # a rest of a word touches the name


def site_name_problem(*texts: str) -> str:
    """The reason to drop a row that contains the site's name; "" if it does not."""
    reason = ""
    for text in texts:
        for match in SITE.finditer(text):
            before, after = text[: match.start()], text[match.end() :]
            signed = re.search(r"health(y|\s)$", before, re.IGNORECASE) and not after.strip(" .,MD")
            inside_word = WORD_BEFORE.search(before) or WORD_AFTER.search(after)
            if not signed and (inside_word or not GREETED.search(before)):
                return "words lost to the site's name"
            reason = "greets or signs in the site's name"
    return reason


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
    rf"(?:(?<=[.?!\n])|^)[^.?!\n]*{_SEEK}[^.?!\n]*?((https?://|www\.)\S+|bit\.ly\S*)|"
    # "If you have a doubt, use this URL. http://..."
    r"(?:(?<=[.?!\n])|^)[^.?!\n]*\buse this (URL|link)\b[.: ]*(https?://\S+)?"
)


def without_advertising(reference: str) -> tuple[str, bool]:
    """The answer without sentences that advertise the site's services, and whether there were any."""
    cleaned, cuts = ADVERTISING.subn("", reference)
    return cleaned.strip(), cuts > 0


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
    r"(i |we )?(really )?hope\b[^,;:]{0,60}\b(help\w*|useful|answer\w*|clear\w*)\b[^,;:]{0,30}|"
    r"(please |kindly |do |if you .{0,60}? )*(let me know|feel free|do not hesitate|don['’]t hesitate|"
    r"write back|(revert|get) back (if|for|in case))\b.*|is there anything else.*|"
    r"(i (am|will be|would be|['’]m) )?(happy|glad|available) (to help|for further).*|anytime"
)
# These openings may be followed by advice in the same sentence: see SUBSTANCE.
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
    r"there (is|are)|according|is|has|had|no|not|but|\d+)\b"
)


def lacks_substance(reference: str) -> bool:
    """Whether the answer has only greetings, thanks, wishes and phrases such as "I have read your query"."""
    sentences = SENTENCE_END.split(ATTACHMENT.sub("", reference))
    sentences = filter(None, (sentence.strip(" \t.,;:!?-*~\"'") for sentence in sentences))
    return all(FORMULA.fullmatch(s) or (OPENING.fullmatch(s) and not SUBSTANCE.search(s)) for s in sentences)


# Traces of the spelling corrector that was run over HealthCareMagic: merged opening words ("Degree
# understand" was "Dear, I understand"), a split word ("ch elation"), a dose after a verb ("Tab For can
# 150 mg" was Forcan).
_OPENS = r"hi|hello|dear|yes|ok|i|we|and|can|do|fully|completely|well|really|totally|truly"
CORRECTED = re.compile(
    rf"(?i)^\W*(?!({_OPENS})\b)[A-Za-z]+ understand your|(?-i:T) hank|^\W*\w*phane you\b|"
    r"(?<![\w'’-])(?<!\d )(?-i:[Cc]h|[SsGgWw]h) [a-z]{3,}|"  # not "GH level"
    r"\b(can|could|may|might|will|would|shall|he|she|they|we)\s\d+([.,]\d+)?\s?(mg|mcg|ml|g|gm|units?)\b"
)
WORD = re.compile(r"[A-Za-z]{6,}")
PAIR = re.compile(r"(?=\b([A-Za-z]{6,})\s+([A-Za-z]{3,}))")  # a word and the next word
SIMILAR = 0.7  # minimum ratio of SequenceMatcher; noriday and holiday have 0.71


def is_autocorrected(query: str, reference: str) -> bool:
    """Whether a spelling corrector has replaced words of the answer.

    Its traces are those in CORRECTED, and a word of the query that appears in the answer as a similar word,
    either before the same next word or capitalized inside a sentence (a medicine turned into a country).
    """
    if CORRECTED.search(reference):
        return True
    query_words = {word.lower() for word in WORD.findall(query)}
    reference_words = {word.lower() for word in WORD.findall(reference)}
    query_pairs = {(word.lower(), next_word.lower()) for word, next_word in PAIR.findall(query)}
    for match in WORD.finditer(reference):
        word = match[0].lower()
        if word in query_words:
            continue
        following = re.match(r"\s+([A-Za-z]{3,})", reference[match.end() :])
        preceding = re.search(r"[a-z,] +$", reference[: match.start()])
        capitalized = preceding and re.fullmatch("[A-Z][a-z]+", match[0])
        for original in query_words - reference_words:
            same_place = capitalized or (following and (original, following[1].lower()) in query_pairs)
            # Words with the same beginning are taken as two forms of one word.
            different = word[:4] != original[:4] and word not in original and original not in word
            if same_place and different and SequenceMatcher(None, word, original).ratio() >= SIMILAR:
                return True
    return False
