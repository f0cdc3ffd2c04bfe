"""Prompts: the paper's instruction, the exam question, and a record as chat messages and as tokens."""

from dataclasses import replace

from medkit.chat_template import (
    CHATML,
    IGNORED,
    ChatFormat,
    PromptError,
    answer_place,
    asked_ids,
    token_arrays,
    training_ids,
)
from medkit.records import LETTERS, PUBMEDQA_OPTIONS, ConsumerQuery, Dialogue, MCQItem

__all__ = [
    "CHATML",
    "IGNORED",
    "INSTRUCTION",
    "ChatFormat",
    "PromptError",
    "letter_place",
    "mcq_answer",
    "mcq_user",
    "messages",
    "prompt",
    "prompt_ids",
    "pubmedqa_decision",
    "pubmedqa_letter",
    "token_arrays",
    "training_ids",
]

# Athukoralage and Atapattu, "Multi-Stage QLoRA with Augmented Structured Dialogue Corpora", Figure 2.
INSTRUCTION = (
    "You are a highly knowledgeable medical assistant with expertise in various medical domains. "
    "Your primary role is to provide accurate, evidence-based medical information and advice. "
    "Your responses should be grounded in the latest clinical guidelines and research, ensuring reliability "
    "and precision. When answering questions, consider the context and complexity of the query, and aim to "
    "provide the most relevant and correct answers."
)


def mcq_user(item: MCQItem) -> str:
    """The user's turn of an exam question: context where there is one, question, lettered options."""
    lines = [f"Context:\n{item.context}\n"] if item.context else []
    lines += ["Question:", item.question, "", "Options:"]
    lines += [f"{letter}) {option}" for letter, option in zip(item.letters, item.options, strict=True)]
    return "\n".join(lines)


def mcq_answer(item: MCQItem, target: str) -> str:
    """What the model is to say: "letter" (paper, 3.1.1: "only ... the correct answer key") gives `C`,
    "letter_and_text" (released notebooks) gives `Answer: C) option text`.

    The letter comes first in its turn, with no space before it: " C" is another token than "C".
    """
    if target == "letter":
        return item.answer
    return f"Answer: {item.answer}) {item.options[LETTERS.index(item.answer)]}"


_DECISIONS = dict(zip(LETTERS, PUBMEDQA_OPTIONS, strict=False))  # A, B, C; D is no answer here


def pubmedqa_letter(decision: str) -> str:
    """yes, no, maybe -> A, B, C (paper, 3.1.1)."""
    return LETTERS[PUBMEDQA_OPTIONS.index(decision)]


def pubmedqa_decision(letter: str) -> str:
    """A, B, C -> yes, no, maybe; PromptError for anything else."""
    if letter not in _DECISIONS:
        raise PromptError(f"{letter!r} is none of PubMedQA's answers; they are {', '.join(_DECISIONS)}")
    return _DECISIONS[letter]


def messages(record: MCQItem | Dialogue | ConsumerQuery, target: str = "letter") -> list[dict[str, str]]:
    """The record as chat messages, the paper's instruction first; a ConsumerQuery ends with the user."""
    if isinstance(record, MCQItem):
        turns = [("user", mcq_user(record)), ("assistant", mcq_answer(record, target))]
    elif isinstance(record, Dialogue):
        turns = [(turn.role, turn.text) for turn in record.turns]
    else:
        turns = [("user", record.query)]
    return [{"role": role, "content": text.strip()} for role, text in [("system", INSTRUCTION), *turns]]


def _asked(record: MCQItem | ConsumerQuery, end: str) -> list[dict[str, str]]:
    turns = [turn for turn in messages(record) if turn["role"] != "assistant"]
    return [*turns[:-1], turns[-1] | {"content": turns[-1]["content"] + end}]


def prompt(chat: ChatFormat, record: MCQItem | ConsumerQuery, end: str = "") -> str:
    """The text up to where the answer begins, with `end` put behind the question."""
    return chat.prompt(_asked(record, end))


def prompt_ids(tokenizer, chat: ChatFormat, record: MCQItem | ConsumerQuery, end: str = "") -> list[int]:
    """The tokens of `prompt`."""
    return asked_ids(tokenizer, chat, _asked(record, end))


def letter_place(tokenizer, target: str) -> dict:
    """Where the letter stands in what was trained, as letter_scoring.score takes it: `encode` gives an item's
    token ids up to there, `letter_tokens` has the token of each letter.

    target "letter": it comes first. "letter_and_text": after `Answer:`, where it may be another token (" C").
    Raises PromptError where a letter is not one token there.
    """
    chat, item = ChatFormat.from_tokenizer(tokenizer), MCQItem("probe", "medqa", "?", ("x",) * 4, "A")
    chats = [messages(replace(item, answer=letter), target) for letter in LETTERS]
    try:
        lead, letters = answer_place(tokenizer, chat, chats)
    except PromptError as error:
        fix = "take another model" if target == "letter" else "set data.mcq_target=letter"
        raise PromptError(f"{error}; {fix}") from None
    return {"encode": lambda item: prompt_ids(tokenizer, chat, item) + lead, "letter_tokens": letters}
