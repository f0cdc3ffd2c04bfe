"""Parses the text of a consultation into turns: the speaker of each line, and where the consultation ends."""

import re
from collections import Counter

from medkit.records import RecordError, Turn

# Part of the generator's prompt, copied into its answer: what to add "if the patient eventually dies".
LEAKED_INSTRUCTION = re.compile(
    r"(?i)\b(if|in case|should|when) (the )?patient (eventually |ultimately |finally |later )?"
    r"(dies?|pass(es)? away|expires?|does not survive|doesn['’]t survive)\b"
)
COMPANIONS = (
    r"mother|father|mom|mum|dad|parent|guardian|wife|husband|spouse|partner|son|daughter|brother|sister|"
    r"family|families|relative|caregiver|caretaker|friend|nurse|assistant|interpreter"
)
COLLEAGUES = r"colleague|team|resident|student|intern|staff|surgeon|specialist|paramedic"
PHYSICIAN = re.compile(r"(?i)^(the )?(doctor|dr|dr\. .*|physician)$")
PATIENT = re.compile(r"(?i)^(the )?patient( \d+)?$")
# Speakers other than the physician. Any other label may be a heading ("Diagnosis:", "Family history:").
PEOPLE = re.compile(rf"(?i)^(the |guest_)?(patient['’]?s? )?(patient|{COMPANIONS})s?( members?)?[ _]?\d*$")
CLINICIAN = re.compile(r"(?i)^(guest[ _]clinicia?n|do[ct]{2}or|do[co]{2}tr|physician)[ _]?\d*$")
# "Patient", "Doctor (smiling)", "Doctor, turning to the nurse"; marks around it are stripped before matching.
LABEL = re.compile(
    r"((?:[Tt]he )?[A-Z][\w.'’]*(?: (?!to\b|turn|speak|talk|address)[\w.'’]+){0,3})\s*"
    r"(?:[\[(,*–—-]+(?P<after>.*)|(?P<to>(?:to|turn|speak|talk|address).*))?"
)
LIST_ITEM = re.compile(r"^([-•*–—]\s|[-•]\w|\(?(\d{1,2}|[a-z])[.)]\s)")
LABEL_INSIDE = re.compile(r"\b(Doctor|Patient|Guest_\w+):\s")

# A stage line is enclosed in brackets or marks, or opens with one that is closed on a later line.
STAGE_LINE = re.compile(r"^([\[({<【（［｛]|[*_~#=>|–—―-])")
ENCLOSED = re.compile(
    r"^(\[[^\[\]]*\]|\([^()]*\)|\{[^{}]*\}|<(\w+)>.*</\2>|【[^【】]*】|（[^（）]*）|［[^［］]*］|"
    r"(\*{1,3}|_{1,3}|~|[–—-]+)(?=[^*_]*[^\W_]).*\3)\W?$"
)
INLINE_ASIDE = re.compile(
    r"[\[({<【（［｛](?P<in>[^\])}>】）］｝]{3,200})[\])}>】）］｝]|(?<![*\w])\*{1,3}(?P<star>[^*\s][^*]{2,200})\*{1,3}|"
    r"(?<!\w)_(?P<line>[^_\s][^_]{2,200})_(?!\w)"
)
TO_OTHERS = (
    r"\b(to|towards?|with|at|addressing|addresses|tells?|telling|informs?|informing|calls?|calling|facing) "
    rf"((the|his|her|their|your|a) )?(\w+['’]s )?(\w+ )?({COMPANIONS}|{COLLEAGUES})s?\b"
)
LATER = r"\b(later|next (day|morning|week|visit|scene)|following (day|morning|week)|meanwhile)\W*$"
STAGE_DIRECTION = re.compile(  # from its first word: "(I talked to my wife)" is speech
    rf"(?i)^(\w+ly )?((turn|speak|talk|whisper|call|nod|walk|point|look)(s|ing) )?(over |back )?{TO_OTHERS}|"
    rf"^(the |a )?(doctor|dr\.?( [A-Z]\w+)?|physician|patient|{COMPANIONS})s?( members?)?"
    rf"( (\w+ly|later|then|now))? ((?!(has|was|had|is|does|needs)\b)\w+(s|ed|ing)|leave|enter|return)\b|"
    rf"^(scene|end of|cut to|fade|exit|enter)\b|^(?-i:[A-Z\d]).*{LATER}"
)
_WHOM = rf"(the |your )?(patient['’]s )?({COMPANIONS})s?( members?)?"
TURNS_TO_OTHERS = re.compile(
    rf"(?i)(^|(?<=[.!?]))\W*((now )?to {_WHOM}:|to the (patient['’]s )?({COMPANIONS})s?( members?)?,|"
    rf"(turning|turns|speaking|talking|addressing)( to)? {_WHOM}\b"
    r"(?!( \w+){0,3} (can|could|may|might|will|would|is|helps?)\b))"  # "Talking to your family can help."
)
# A death announced to the family, so not addressed to a patient who speaks.
_DIED = (
    r"(passed (away|on)|(has |have |had )?died|deceased|did(n['’]t| not) (make it|survive)|succumbed|"
    r"no longer with us)\b"
)
DEATH_NOTICE = re.compile(
    rf"(?i)\byour loved one\b|\bthe patient\b(?!['’]s| in )[^.?!]{{0,60}}\b(expired\b|{_DIED})|"
    rf"\b(regret|inform|despite|efforts|we did (all|everything))\b[^.?!]{{0,100}}\b{_DIED}|"
    rf"\byour ({COMPANIONS}|child|baby) (has|have|just)( just| now| sadly)? "
    r"(died|passed(?! (the|this|it|on (the|this|a))\b))\b|"
    r"\b(he|she|they) (did not|didn['’]t) (make it|survive)\b|\bwe( have|['’]ve)? lost (him|her)\b|"
    r"\b(could not|couldn['’]t|unable to|not able to) (save|revive|resuscitate) (him|her|your|the patient)\b"
)
# Also a death announced to the family, or sympathy for a patient who has mentioned a death.
SYMPATHY = re.compile(
    r"(?i)\b(your|the family['’]s) loss\b(?! of)|\bcondolences?\b|\b(deepest|heartfelt|sincere) sympath\w+|"
    r"\b(time of death|death certificate|autopsy|rest in peace|bereave\w+|funeral)\b|"
    rf"\b(sorry|sad(ly)?|unfortunately)\b[^.?!]{{0,100}}\b{_DIED}"
)
MENTIONED_DEATH = re.compile(
    r"(?i)\b(pass(es|ing)? (away|on)|passed(?! (out|urine|gas|stools?|blood|an?|the|my|by|through|to|over)"
    r"\b)|died|dies|dying|dead|deaths?|deceased|funeral|griev\w+|grief|widow\w*|miscarr\w+|"
    rf"stillb\w+|suicide|killed|(lost|losing|loss of) (my|our|his|her|the|a) ({COMPANIONS}|baby|child|"
    r"pregnancy|sons?|daughters?|children|twins?|grand\w+|aunt|uncle))\b"
)
DEATH_WORDS = (  # every match of DEATH_NOTICE and SYMPATHY contains one of these
    "loved one|passed|died|deceased|make it|surviv|succumb|expired|no longer|lost h|save|revive|resuscitate|"
    "loss|condolence|sympath|death|autopsy|in peace|bereave|funeral"
).split("|")
AT_STAGE_LINE, AT_OTHERS = "a stage line", "words to others than the patient"
AT_LEAK = "the generator's leaked instruction"


def turns_of(conversation: str) -> tuple[tuple[Turn, ...], Counter]:
    """Parse lines "Doctor: ...", "Patient: ..." into turns, and count the kinds of cuts made (each 0 or 1).

    The physician's lines become assistant turns and all other speakers' lines user turns; consecutive lines
    of one role become one turn. Text before the first label and turns after the physician's last are cut.

    The consultation ends at a stage line, or where the physician turns to someone other than the patient.
    The text after it is another scene, often the family being told of the patient's death, and would look
    as if it were addressed to the patient.

    It also ends before the sentence with the generator's leaked instruction.

    Raises RecordError for a line with an unclear speaker, for a second clinician (the two talk about the
    patient, not to them), and if one side never speaks.
    """
    conversation, leak = _before_leak(conversation)
    turns: list[list[str]] = []  # [role, line, line, ...]
    cuts, role, end, bare_label = Counter(), "", "", False
    lines = [line.strip() for line in conversation.split("\n") if line.strip()]
    patient_speaks = any(PATIENT.match(_split_label(line)[0]) for line in lines)
    for line in lines:
        role, words, end = _read_line(line, role, bare_label)
        if not role:
            cuts["rows with a preamble cut"] = 1
            continue
        if not end:
            words, end = _cut_at_end(words, role, turns, patient_speaks)
        bare_label = not words  # after "Doctor:" alone, the next line has the words
        if LABEL_INSIDE.search(words):
            raise RecordError("two speakers on one line")
        if turns and turns[-1][0] == role:
            turns[-1].append(words)
        elif words:
            turns.append([role, words])
        if end:
            break
    if end := end or leak:
        cuts[f"rows cut at {end}"] = 1
    return _checked(turns, cuts, end), cuts


def _before_leak(conversation: str) -> tuple[str, str]:
    """The text before the sentence with the leaked instruction, and AT_LEAK; or all of it and ""."""
    leak = LEAKED_INSTRUCTION.search(conversation)
    if not leak:
        return conversation, ""
    before = conversation[: leak.start()]
    return before[: max(before.rfind(mark) for mark in ".!?\n") + 1], AT_LEAK


def _read_line(line: str, last_role: str, bare_label: bool) -> tuple[str, str, str]:
    """(role, words, end) of a line; `end` is why the consultation ends before the line, or "".

    A list item without a label, or the line after a bare label, continues the turn of `last_role`. The role
    is "" before the first label.
    """
    speaker, aside, words = _split_label(line)
    role = _role(speaker)
    if role and not (ENCLOSED.match(line) and line[0] not in "*_"):
        if role == "assistant" and re.search(TO_OTHERS, aside, re.IGNORECASE):
            return role, "", AT_OTHERS
        if re.search(LATER, aside, re.IGNORECASE):
            return role, "", AT_STAGE_LINE
        return role, words, ""
    if not last_role:
        return "", "", ""
    item = LIST_ITEM.match(line)
    staged = ENCLOSED.match(line[item.end() - 1 :].strip()) if item else STAGE_LINE.match(line)
    if staged or ENCLOSED.match(line):
        return last_role, "", AT_STAGE_LINE
    if speaker:
        raise RecordError("speaker not known")
    if not (item or bare_label):
        raise RecordError("line without a speaker")
    return last_role, line, ""


def _split_label(line: str) -> tuple[str, str, str]:
    """(speaker, aside after the name, words) of a line; speaker and aside are "" if it has no label."""
    label, colon, words = line.partition(":")
    match = LABEL.fullmatch(label.strip(" \t*_#>[]()\"“'")) if colon and len(label) <= 80 else None
    if not match:
        return "", "", line
    words = words.lstrip("*_]) ") if line[0] in "*_[(" else words.strip()
    return match[1], match["after"] or match["to"] or "", words


def _role(speaker: str) -> str:
    """ "assistant", "user", or "" for a label that is not a person."""
    if PHYSICIAN.match(speaker):
        return "assistant"
    if CLINICIAN.match(speaker):
        raise RecordError("a second clinician speaks")
    return "user" if PEOPLE.match(speaker) else ""


def _cut_at_end(words: str, role: str, turns: list[list[str]], patient_speaks: bool) -> tuple[str, str]:
    """The words before the consultation ends, and why it ends ("" if it continues)."""
    if ENCLOSED.match(words):
        return "", AT_STAGE_LINE
    ends = [
        (match.start(), AT_STAGE_LINE)
        for match in INLINE_ASIDE.finditer(words)
        if STAGE_DIRECTION.search(next(filter(None, match.groupdict().values())).strip())
    ]
    if role == "assistant":
        ends += [(match.start(), AT_OTHERS) for match in TURNS_TO_OTHERS.finditer(words)]
        if patient_speaks and (notice := _death_notice(words, turns)):
            before = words[: notice.start()]
            sentence = before[max(before.rfind(mark) for mark in ".!?") + 1 :].lstrip()
            ends.append((len(before) - len(sentence), AT_OTHERS))
    position, reason = min(ends, default=(len(words), ""))
    return words[:position].strip(), reason


def _death_notice(words: str, turns: list[list[str]]) -> re.Match | None:
    """The announcement of a death by the physician, unless it answers a death that the patient mentioned."""
    lowered = words.lower()
    if not any(word in lowered for word in DEATH_WORDS):  # skips the slow patterns for most of 200,000 rows
        return None
    if match := DEATH_NOTICE.search(words):
        return match
    match = SYMPATHY.search(words)
    recent_lines = (line for role, *lines in turns[-4:] if role == "user" for line in lines)
    return None if match and MENTIONED_DEATH.search(" ".join(recent_lines)) else match


def _checked(turns: list[list[str]], cuts: Counter, end: str) -> tuple[Turn, ...]:
    """The turns without a final patient turn. Raises RecordError if one side never speaks."""
    roles = [role for role, *_ in turns]
    ends_with_patient = roles[-1:] == ["user"]
    if end and not {"user", "assistant"} <= set(roles[:-1] if ends_with_patient else roles):
        raise RecordError(f"nothing left before {end}")
    for role, speaker in (("user", "patient"), ("assistant", "physician")):
        if role not in roles:
            raise RecordError(f"no {speaker} turn")
    if ends_with_patient:
        turns.pop()
        if not end:
            cuts["rows with a last patient turn cut"] = 1
    return tuple(Turn(role, "\n".join(filter(None, lines))) for role, *lines in turns)
