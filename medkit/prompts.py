"""Prompts: the paper's instruction, the exam question, and a record as chat messages and as tokens."""

from collections.abc import Sequence
from dataclasses import replace

from medkit.chat_template import (  # noqa: F401 (offered here too)
    CHATML,
    IGNORED,
    ChatFormat,
    PromptError,
    answer_place,
    asked_ids,
    token_arrays,
    training_ids,
)
from medkit.records import LETTERS, ConsumerQuery, Dialogue, MCQItem

# Athukoralage and Atapattu, "Multi-Stage QLoRA with Augmented Structured Dialogue Corpora", Figure 2.
INSTRUCTION = (
    "You are a highly knowledgeable medical assistant with expertise in various medical domains. "
    "Your primary role is to provide accurate, evidence-based medical information and advice. "
    "Your responses should be grounded in the latest clinical guidelines and research, ensuring reliability "
    "and precision. When answering questions, consider the context and complexity of the query, and aim to "
    "provide the most relevant and correct answers."
)

SHORTEST = 8  # tokens; sharing fewer costs more than it saves


def mcq_user(item: MCQItem) -> str:
    """The user's turn of an exam question: context where there is one, question, lettered options."""
    lines = [f"Context:\n{item.context}\n"] if item.context else []
    lines += ["Question:", item.question, "", "Options:"]
    lines += [f"{letter}) {option}" for letter, option in zip(item.letters, item.options, strict=True)]
    return "\n".join(lines)


def mcq_answer(item: MCQItem, target: str) -> str:
    """What the model should say: `C` for "letter" (paper, 3.1.1: "only ... the correct answer key"),
    `Answer: C) option text` for "letter_and_text" (released notebooks).

    The letter comes first in its turn, with no space before it: " C" is another token than "C".
    """
    if target == "letter":
        return item.answer
    return f"Answer: {item.answer}) {item.options[LETTERS.index(item.answer)]}"


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
    """The text up to where the answer begins, with `end` after the question."""
    return chat.prompt(_asked(record, end))


def prompt_ids(tokenizer, chat: ChatFormat, record: MCQItem | ConsumerQuery, end: str = "") -> list[int]:
    """The tokens of `prompt`."""
    return asked_ids(tokenizer, chat, _asked(record, end))


def letter_place(tokenizer, target: str) -> dict:
    """Where the letter is in a training row, as letter_scoring.score takes it: `encode` returns an item's
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


def shared_start(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest common beginning of the prompts that leaves at least one token of each; () where it is
    shorter than SHORTEST or there are fewer than two prompts."""
    if len(prompts) < 2:
        return ()
    first, last = min(prompts), max(prompts)  # what these two share, all between them share
    most = min(map(len, prompts)) - 1
    length = next((i for i in range(most) if first[i] != last[i]), most)
    return first[:length] if length >= SHORTEST else ()
