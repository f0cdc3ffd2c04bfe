"""Prompts: the paper's instruction, exam questions, and records as chat messages and token ids."""

from collections.abc import Sequence
from dataclasses import replace

from medkit import chat_template
from medkit.chat_template import (  # noqa: F401 (re-exported)
    CHATML,
    IGNORED,
    ChatFormat,
    PromptError,
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

MIN_SHARED_TOKENS = 8  # caching a shorter prefix costs more than it saves


def mcq_user(item: MCQItem) -> str:
    """The user turn of an exam question: context if any, question, lettered options."""
    lines = [f"Context:\n{item.context}\n"] if item.context else []
    lines += ["Question:", item.question, "", "Options:"]
    lines += [f"{letter}) {option}" for letter, option in zip(item.letters, item.options, strict=True)]
    return "\n".join(lines)


def mcq_answer(item: MCQItem, target: str) -> str:
    """The expected answer: `C` for "letter" (paper, 3.1.1: "only ... the correct answer key"),
    `Answer: C) option text` for "letter_and_text" (released notebooks).

    With "letter" no space precedes the letter: " C" and "C" are different tokens.
    """
    if target == "letter":
        return item.answer
    return f"Answer: {item.answer}) {item.options[LETTERS.index(item.answer)]}"


def messages(record: MCQItem | Dialogue | ConsumerQuery, target: str = "letter") -> list[dict[str, str]]:
    """The record as chat messages, starting with the paper's instruction as the system message.

    A ConsumerQuery ends with the user turn; the other records end with the answer.
    """
    if isinstance(record, MCQItem):
        turns = [("user", mcq_user(record)), ("assistant", mcq_answer(record, target))]
    elif isinstance(record, Dialogue):
        turns = [(turn.role, turn.text) for turn in record.turns]
    else:
        turns = [("user", record.query)]
    return [{"role": role, "content": text.strip()} for role, text in [("system", INSTRUCTION), *turns]]


def _prompt_messages(record: MCQItem | ConsumerQuery, suffix: str) -> list[dict[str, str]]:
    turns = [turn for turn in messages(record) if turn["role"] != "assistant"]
    return [*turns[:-1], turns[-1] | {"content": turns[-1]["content"] + suffix}]


def prompt(chat: ChatFormat, record: MCQItem | ConsumerQuery, suffix: str = "") -> str:
    """The text up to where the answer begins. `suffix` is appended to the question."""
    return chat.prompt(_prompt_messages(record, suffix))


def prompt_ids(tokenizer, chat: ChatFormat, record: MCQItem | ConsumerQuery, suffix: str = "") -> list[int]:
    """Token ids of `prompt`."""
    return chat_template.prompt_ids(tokenizer, chat, _prompt_messages(record, suffix))


def letter_position(tokenizer, target: str) -> dict:
    """The position of the answer letter in a training row, as keyword arguments of letter_scoring.score.

    `encode` returns an item's token ids up to the letter; `letter_tokens` are the ids of A, B, C, D there.
    With target "letter" the letter comes first; with "letter_and_text" it follows `Answer:`, where it may be
    another token (" C"). Raises PromptError if a letter is not a single token there.
    """
    chat, probe = ChatFormat.from_tokenizer(tokenizer), MCQItem("probe", "medqa", "?", ("x",) * 4, "A")
    chats = [messages(replace(probe, answer=letter), target) for letter in LETTERS]
    try:
        lead, letter_tokens = chat_template.answer_position(tokenizer, chat, chats)
    except PromptError as error:
        fix = "use another model" if target == "letter" else "set data.mcq_target=letter"
        raise PromptError(f"{error}; {fix}") from None
    return {"encode": lambda item: prompt_ids(tokenizer, chat, item) + lead, "letter_tokens": letter_tokens}


def shared_prefix(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest common prefix that leaves at least one token of each prompt.

    Returns () if it is shorter than MIN_SHARED_TOKENS or there are fewer than two prompts.
    """
    if len(prompts) < 2:
        return ()
    first, last = min(prompts), max(prompts)  # a common prefix of these two is common to all between them
    longest = min(map(len, prompts)) - 1
    length = next((i for i in range(longest) if first[i] != last[i]), longest)
    return first[:length] if length >= MIN_SHARED_TOKENS else ()
