"""NoteChat's text -> turns: who speaks in a line, and what is done where that cannot be told."""

import re
from collections import Counter

from medkit.records import RecordError, Turn

LEAKED_INSTRUCTION = "if the patient eventually dies"  # the generator's prompt, copied into its answer
SPEAKER = re.compile(r"^\W{0,3}([A-Z][A-Za-z.'’]*(?: [A-Za-z0-9.'’()]+){0,3})\W{0,3}:\**\s*(.*)$")
PHYSICIAN = re.compile(r"^(doctor|dr|dr\. .*|physician)$", re.IGNORECASE)
# Who may speak besides the physician. Any other label may be a heading ("Diagnosis:", "Family history:").
PEOPLE = re.compile(
    r"^(the )?(patient['’]?s? )?(patient|mother|father|mom|mum|dad|parent|guardian|wife|husband|spouse|"
    r"partner|son|daughter|brother|sister|family|relative|caregiver|caretaker|friend|nurse|assistant|"
    r"interpreter)s?( members?| \d+)?$",
    re.IGNORECASE,
)
STAGE_LINE = re.compile(r"^(\[.*\]|\(.*\)|\*[^*].*[^*]\*|-{3,}|={3,}|\*{3,})\.?$")
LIST_ITEM = re.compile(r"^([-•*]|\d{1,2}[.)])\s")
LABEL_INSIDE = re.compile(r"\b(Doctor|Patient):\s")


def turns_of(conversation: str) -> tuple[tuple[Turn, ...], Counter]:
    """The turns of lines "Doctor: ...", "Patient: ...", and what was cut (each counted 0 or 1).

    The physician's lines become the assistant's turns, all other speakers' the user's; lines by one role
    in a row become one turn. What comes before the first label, stage lines, and turns after the
    physician's last are cut. Raises RecordError for a line whose speaker cannot be told, for the
    generator's leaked instruction, and where one side never speaks.
    """
    if LEAKED_INSTRUCTION in conversation.lower():
        raise RecordError("leaked instruction of the generator")
    bare_label = False
    changed = Counter()
    turns: list[list[str]] = []  # [role, line, line, ...]
    role = ""  # whose line was the last
    for line in filter(None, map(str.strip, conversation.split("\n"))):
        said = line
        label = SPEAKER.match(line)
        speaker = _role(label[1]) if label else ""
        if speaker:
            role, said = speaker, label[2].strip()
        elif not role:
            changed["rows with a preamble cut"] = 1
            continue
        elif label:
            raise RecordError("speaker not known")
        elif STAGE_LINE.match(line):
            changed["rows with stage lines cut"] = 1
            continue
        elif not (LIST_ITEM.match(line) or bare_label):
            raise RecordError("line without a speaker")
        bare_label = not said  # "Doctor:" alone: the next line is what he says
        if LABEL_INSIDE.search(said):
            raise RecordError("two speakers on one line")
        if turns and turns[-1][0] == role:
            turns[-1].append(said)
        elif said:
            turns.append([role, said])
    if not any(role == "user" for role, *_ in turns):
        raise RecordError("no patient turn")
    if not any(role == "assistant" for role, *_ in turns):
        raise RecordError("no physician turn")
    if turns[-1][0] == "user":
        turns.pop()
        changed["rows with a last patient turn cut"] = 1
    return tuple(Turn(role, "\n".join(filter(None, lines))) for role, *lines in turns), changed


def _role(speaker: str) -> str:
    """ "assistant", "user", or "" for a label that is no person's."""
    speaker = re.sub(r" ?\(.*?\)", "", speaker).strip()  # "Patient (coughing)"
    if PHYSICIAN.match(speaker):
        return "assistant"
    return "user" if PEOPLE.match(speaker) else ""
