"""A consultation's text -> turns: who speaks in a line and to whom, and where the consultation ends."""

import re
from collections import Counter

from medkit.records import RecordError, Turn

# The generator's prompt, copied into its answer: what to add "if the patient eventually dies".
LEAKED_INSTRUCTION = re.compile(
    r"(?i)\b(if|in case|should|when) (the )?patient (eventually |ultimately |finally |later )?"
    r"(dies?|pass(es)? away|expires?|does not survive|doesn['’]t survive)\b"
)
OTHERS = (
    r"mother|father|mom|mum|dad|parent|guardian|wife|husband|spouse|partner|son|daughter|brother|sister|"
    r"family|families|relative|caregiver|caretaker|friend|nurse|assistant|interpreter"
)
COLLEAGUES = r"colleague|team|resident|student|intern|staff|surgeon|specialist|paramedic"
PHYSICIAN = re.compile(r"(?i)^(the )?(doctor|dr|dr\. .*|physician)$")
PATIENT = re.compile(r"(?i)^(the )?patient( \d+)?$")
# Who may speak besides the physician. Any other label may be a heading ("Diagnosis:", "Family history:").
PEOPLE = re.compile(rf"(?i)^(the |guest_)?(patient['’]?s? )?(patient|{OTHERS})s?( members?)?[ _]?\d*$")
CLINICIAN = re.compile(r"(?i)^(guest[ _]clinicia?n|do[ct]{2}or|do[co]{2}tr|physician)[ _]?\d*$")
# "Patient", "**Doctor**", "Doctor (smiling)", "Doctor, turning to the nurse"; without the marks around it.
LABEL = re.compile(
    r"((?:[Tt]he )?[A-Z][\w.'’]*(?: (?!to\b|turn|speak|talk|address)[\w.'’]+){0,3})\s*"
    r"(?:[\[(,*–—-]+(?P<after>.*)|(?P<to>(?:to|turn|speak|talk|address).*))?"
)
LIST_ITEM = re.compile(r"^([-•*–—]\s|[-•]\w|\(?(\d{1,2}|[a-z])[.)]\s)")
LABEL_INSIDE = re.compile(r"\b(Doctor|Patient|Guest_\w+):\s")

# A stage line: all in brackets, between marks, or begun like one that ends in a later line.
STAGE_LINE = re.compile(r"^([\[({<【（［｛]|[*_~#=>|–—―-])")
ENCLOSED = re.compile(
    r"^(\[[^\[\]]*\]|\([^()]*\)|\{[^{}]*\}|<(\w+)>.*</\2>|【[^【】]*】|（[^（）]*）|［[^［］]*］|"
    r"(\*{1,3}|_{1,3}|~|[–—-]+)(?=[^*_]*[^\W_]).*\3)\W?$"
)
INSIDE = re.compile(
    r"[\[({<【（［｛](?P<in>[^\])}>】）］｝]{3,200})[\])}>】）］｝]|(?<![*\w])\*{1,3}(?P<star>[^*\s][^*]{2,200})\*{1,3}|"
    r"(?<!\w)_(?P<line>[^_\s][^_]{2,200})_(?!\w)"
)
TO_OTHERS = (
    r"\b(to|towards?|with|at|addressing|addresses|tells?|telling|informs?|informing|calls?|calling|facing) "
    rf"((the|his|her|their|your|a) )?(\w+['’]s )?(\w+ )?({OTHERS}|{COLLEAGUES})s?\b"
)
LATER = r"\b(later|next (day|morning|week|visit|scene)|following (day|morning|week)|meanwhile)\W*$"
DIRECTION = re.compile(
    rf"(?i){TO_OTHERS}|^(the |a )?(doctor|dr\.?( [A-Z]\w+)?|physician|patient|{OTHERS})s?( members?)?"
    rf"( \w+ly)? (\w+(s|ed|ing)|leave|enter|return)\b|"
    rf"^(scene|end of|cut to|fade|exit|enter)\b|^(?-i:[A-Z\d]).*{LATER}"
)
_WHOM = rf"(the |your )?(patient['’]s )?({OTHERS})s?( members?)?"
TURNS_TO_OTHERS = re.compile(
    rf"(?i)(^|(?<=[.!?]))\W*((now )?to {_WHOM}:|to the (patient['’]s )?({OTHERS})s?( members?)?,|"
    rf"(turning|turns|speaking|talking|addressing)( to)? {_WHOM}\b)"
)
# The death of somebody, told to those who are left: not for a patient who speaks.
_DIED = (
    r"(passed (away|on)|(has |have |had )?died|deceased|did(n['’]t| not) (make it|survive)|succumbed|"
    r"no longer with us)\b"
)
NOTICE = re.compile(
    rf"(?i)\byour loved one\b|\bthe patient\b[^.?!]{{0,60}}\b(expired\b|{_DIED})|"
    rf"\b(regret|inform|despite|efforts|we did (all|everything))\b[^.?!]{{0,100}}\b{_DIED}|"
    rf"\byour ({OTHERS}|child|baby) (has|have|just)( just| now| sadly)? (passed|died)\b|"
    r"\b(he|she|they) (did not|didn['’]t) (make it|survive)\b|\bwe( have|['’]ve)? lost (him|her)\b|"
    r"\b(could not|couldn['’]t|unable to|not able to) (save|revive|resuscitate) (him|her|your|the patient)\b"
)
# The same, or what a physician says to a patient who has spoken of a death.
SYMPATHY = re.compile(
    r"(?i)\b(your|the family['’]s) loss\b(?! of)|\bcondolences?\b|\b(deepest|heartfelt|sincere) sympath\w+|"
    r"\b(time of death|death certificate|autopsy|rest in peace|bereave\w+|funeral)\b|"
    rf"\b(sorry|sad(ly)?|unfortunately)\b[^.?!]{{0,100}}\b{_DIED}"
)
A_DEATH = re.compile(
    r"(?i)\b(pass(es|ing)? (away|on)|passed(?! (out|urine|gas|stools?|blood|an?|the|my|by|through|to|over)"
    r"\b)|died|dies|dying|dead|deaths?|deceased|funeral|griev\w+|grief|widow\w*|miscarr\w+|"
    rf"stillb\w+|suicide|killed|(lost|losing|loss of) (my|our|his|her|the|a) ({OTHERS}|baby|child|pregnancy|"
    r"sons?|daughters?|children|twins?|grand\w+|aunt|uncle))\b"
)
OF_A_DEATH = (  # one of them is in whatever NOTICE and SYMPATHY match
    "loved one|passed|died|deceased|make it|surviv|succumb|expired|no longer|lost h|save|revive|resuscitate|"
    "loss|condolence|sympath|death|autopsy|in peace|bereave|funeral"
).split("|")
AT_STAGE_LINE, AT_OTHERS = "a stage line", "words to others than the patient"


def turns_of(conversation: str) -> tuple[tuple[Turn, ...], Counter]:
    """The turns of lines "Doctor: ...", "Patient: ...", and what was cut (each counted 0 or 1).

    The physician's lines become the assistant's turns, all other speakers' the user's; lines by one role
    in a row become one turn. What comes before the first label and turns after the physician's last are
    cut. The consultation ends at a stage line and where the physician turns to others than the patient: what
    follows is another scene, often the patient's death told to the family, and would read as said to the
    patient. Raises RecordError for a line whose speaker is unclear, for a second clinician (the two speak
    about the patient, not with), for the generator's leaked instruction, and where one side never speaks.
    """
    if LEAKED_INSTRUCTION.search(conversation):
        raise RecordError("leaked instruction of the generator")
    turns: list[list[str]] = []  # [role, line, line, ...]
    changed, role, end, bare_label = Counter(), "", "", False
    texts = [text.strip() for text in conversation.split("\n") if text.strip()]
    with_patient = any(PATIENT.match(_label(text)[0]) for text in texts)
    for text in texts:
        role, said, end = _read(text, role, bare_label)
        if not role:
            changed["rows with a preamble cut"] = 1
            continue
        if not end:
            said, end = _until_the_end(role, said, turns, with_patient)
        bare_label = not said  # "Doctor:" alone: the next line is what he says
        if LABEL_INSIDE.search(said):
            raise RecordError("two speakers on one line")
        if turns and turns[-1][0] == role:
            turns[-1].append(said)
        elif said:
            turns.append([role, said])
        if end:
            changed[f"rows cut at {end}"] = 1
            break
    return _checked(turns, changed, end), changed


def _read(text: str, speaking: str, bare_label: bool) -> tuple[str, str, str]:
    """(role, words, why the consultation ends before the line) of a line; what has no label belongs to the
    role that was `speaking`, where that is plain. The role is "" before the first label."""
    speaker, aside, said = _label(text)
    role = _role(speaker)
    if role and not (ENCLOSED.match(text) and text[0] not in "*_"):
        if role == "assistant" and re.search(TO_OTHERS, aside, re.IGNORECASE):
            return role, "", AT_OTHERS
        if re.search(LATER, aside, re.IGNORECASE):
            return role, "", AT_STAGE_LINE
        return role, said, ""
    if not speaking:
        return "", "", ""
    item = LIST_ITEM.match(text)
    staged = ENCLOSED.match(text[item.end() - 1 :].strip()) if item else STAGE_LINE.match(text)
    if staged or ENCLOSED.match(text):
        return speaking, "", AT_STAGE_LINE
    if speaker:
        raise RecordError("speaker not known")
    if not (item or bare_label):
        raise RecordError("line without a speaker")
    return speaking, text, ""


def _label(text: str) -> tuple[str, str, str]:
    """(speaker, what is beside the name, words) of a line; the first is "" where it has no label."""
    head, colon, said = text.partition(":")
    found = LABEL.fullmatch(head.strip(" \t*_#>[]()\"“'")) if colon and len(head) <= 80 else None
    if not found:
        return "", "", text
    said = said.lstrip("*_]) ") if text[0] in "*_[(" else said.strip()
    return found[1], found["after"] or found["to"] or "", said


def _role(speaker: str) -> str:
    """ "assistant", "user", or "" for a label that names no person."""
    if PHYSICIAN.match(speaker):
        return "assistant"
    if CLINICIAN.match(speaker):
        raise RecordError("a second clinician speaks")
    return "user" if PEOPLE.match(speaker) else ""


def _until_the_end(role: str, said: str, turns: list[list[str]], with_patient: bool) -> tuple[str, str]:
    """The words up to where the consultation ends in them, and why it does ("" where it goes on)."""
    if ENCLOSED.match(said):
        return "", AT_STAGE_LINE
    ends = [
        (found.start(), AT_STAGE_LINE)
        for found in INSIDE.finditer(said)
        if DIRECTION.search(next(filter(None, found.groupdict().values())).strip())
    ]
    if role == "assistant":
        ends += [(found.start(), AT_OTHERS) for found in TURNS_TO_OTHERS.finditer(said)]
        if with_patient and (notice := _notice(said, turns)):
            before = said[: notice.start()]
            sentence = before[max(before.rfind(mark) for mark in ".!?") + 1 :].lstrip()
            ends.append((len(before) - len(sentence), AT_OTHERS))
    place, why = min(ends, default=(len(said), ""))
    return said[:place].strip(), why


def _notice(said: str, turns: list[list[str]]) -> re.Match | None:
    """The notice of a death in the physician's words, unless it answers the patient's last turns."""
    lowered = said.lower()
    if not any(word in lowered for word in OF_A_DEATH):  # the patterns are slow, and 200,000 rows many
        return None
    if found := NOTICE.search(said):
        return found
    found = SYMPATHY.search(said)
    lately = (text for role, *lines in turns[-4:] if role == "user" for text in lines)
    return None if found and A_DEATH.search(" ".join(lately)) else found


def _checked(turns: list[list[str]], changed: Counter, end: str) -> tuple[Turn, ...]:
    """The turns, without a last one of the patient's; RecordError where one side never speaks."""
    roles = [role for role, *_ in turns]
    last_is_users = roles[-1:] == ["user"]
    if end and not {"user", "assistant"} <= set(roles[:-1] if last_is_users else roles):
        raise RecordError(f"nothing left before {end}")
    for role, speaker in (("user", "patient"), ("assistant", "physician")):
        if role not in roles:
            raise RecordError(f"no {speaker} turn")
    if last_is_users:
        turns.pop()
        if not end:
            changed["rows with a last patient turn cut"] = 1
    return tuple(Turn(role, "\n".join(filter(None, lines))) for role, *lines in turns)
