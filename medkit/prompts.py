"""Prompts: the paper's instruction, the exam question, and where in the tokens the answer begins.

A row is written as segments, each a text and whether it is answered by the model, and every segment is
tokenized on its own. Segments meet at the template's special tokens, so the tokens are those of the whole
text; and what the model sees before an answer in training is, token for token, the prompt it gets when it
is scored. tests/test_prompts.py holds both against the real Llama 3 and SmolLM2 tokenizers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from medkit import MedkitError
from medkit.records import LETTERS, PUBMEDQA_OPTIONS, ConsumerQuery, Dialogue, MCQItem

# Athukoralage and Atapattu, "Multi-Stage QLoRA with Augmented Structured Dialogue Corpora", Figure 2.
INSTRUCTION = (
    "You are a highly knowledgeable medical assistant with expertise in various medical domains. "
    "Your primary role is to provide accurate, evidence-based medical information and advice. "
    "Your responses should be grounded in the latest clinical guidelines and research, ensuring reliability "
    "and precision. When answering questions, consider the context and complexity of the query, and aim to "
    "provide the most relevant and correct answers."
)

# "chatml" of the released notebooks: ChatML in which the model's own end token stands for <|im_end|>.
CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

IGNORED = -100  # the label torch's cross entropy leaves out


class PromptError(MedkitError):
    """A tokenizer that cannot render or score what medkit asks of it."""


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


def pubmedqa_letter(decision: str) -> str:
    """yes, no, maybe -> A, B, C (paper, 3.1.1)."""
    return LETTERS[PUBMEDQA_OPTIONS.index(decision)]


def pubmedqa_decision(letter: str) -> str:
    """A, B, C -> yes, no, maybe."""
    return PUBMEDQA_OPTIONS[LETTERS.index(letter)]


def messages(record: MCQItem | Dialogue | ConsumerQuery, target: str = "letter") -> list[dict[str, str]]:
    """The record as chat messages, the paper's instruction first; a ConsumerQuery ends with the user."""
    if isinstance(record, MCQItem):
        turns = [("user", mcq_user(record)), ("assistant", mcq_answer(record, target))]
    elif isinstance(record, Dialogue):
        turns = [(turn.role, turn.text) for turn in record.turns]
    else:
        turns = [("user", record.query)]
    return [{"role": role, "content": text.strip()} for role, text in [("system", INSTRUCTION), *turns]]


@dataclass(frozen=True)
class ChatFormat:
    """A chat template taken apart into the text around each role's content.

    Rendering by concatenation is some fifty times faster than Jinja and gives the same text:
    `from_tokenizer` refuses a template for which that does not hold.
    """

    bos: str  # what comes before the first message
    before: tuple[tuple[str, str], ...]  # (role, text before its content)
    after: str  # the end-of-turn token, text
    between: str  # what follows the end-of-turn token, e.g. a newline; never supervised

    @classmethod
    def from_tokenizer(cls, tokenizer) -> "ChatFormat":
        """Raises PromptError where the tokenizer has no template, or one that is more than a concatenation."""
        if not tokenizer.chat_template:
            raise PromptError("the tokenizer has no chat template; take an instruct model")
        s, u, a, v, b = probes = ["sysq", "userq", "assq", "userz", "assz"]
        roles = ["system", "user", "assistant", "user", "assistant"]
        turns = [{"role": role, "content": text} for role, text in zip(roles, probes, strict=True)]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        prompt = tokenizer.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
        try:
            head, rest = text.split(s)
            after_system, rest = rest.split(u)
            before_answer, rest = rest.split(a)
            _, rest = rest.split(v)
            _, tail = rest.split(b)
        except ValueError:
            raise PromptError(
                "the chat template repeats or drops a message's content; medkit cannot mask it"
            ) from None
        end, between = _split_end_of_turn(tail, tokenizer)
        generation = prompt.split(u)[1]
        opening = {"assistant": before_answer.removeprefix(end + between)}
        opening["user"] = after_system.removeprefix(end + between)
        bos = tokenizer.bos_token if tokenizer.bos_token and head.startswith(tokenizer.bos_token) else ""
        opening["system"] = head.removeprefix(bos)
        made = cls(bos, tuple(opening.items()), end, between)
        if made.text(turns) != text or generation != end + between + opening["assistant"]:
            raise PromptError(
                "the chat template is more than a concatenation of turns; medkit cannot mask it"
            )
        return made

    def segments(self, turns: Sequence[dict[str, str]]) -> list[tuple[str, bool]]:
        """(text, supervised) pieces whose concatenation is the rendered chat; the model's turns are
        supervised up to and with the end-of-turn token."""
        opening, pieces, pending = dict(self.before), [], self.bos
        for turn in turns:
            pending += opening[turn["role"]]
            if turn["role"] == "assistant":
                pieces += [(pending, False), (turn["content"] + self.after, True)]
                pending = self.between
            else:
                pending += turn["content"] + self.after + self.between
        return [*pieces, (pending, False)] if pending else pieces

    def text(self, turns: Sequence[dict[str, str]]) -> str:
        return "".join(piece for piece, _ in self.segments(turns))

    def prompt(self, turns: Sequence[dict[str, str]]) -> str:
        """The text up to where the model's answer begins; `turns` end with the user."""
        return self.text(turns) + dict(self.before)["assistant"]


def _split_end_of_turn(tail: str, tokenizer) -> tuple[str, str]:
    """The template's text after an answer as (end-of-turn token, the rest)."""
    ids = tokenizer.encode(tail, add_special_tokens=False)
    end = tokenizer.decode(ids[:1]) if ids else ""
    if not end or not tail.startswith(end) or ids[0] not in tokenizer.all_special_ids:
        raise PromptError(f"the chat template ends an answer with {tail!r}, not with a special token")
    return end, tail[len(end) :]


def prompt_ids(tokenizer, chat: ChatFormat, record: MCQItem | ConsumerQuery) -> list[int]:
    """Token ids up to where the answer begins."""
    turns = [turn for turn in messages(record) if turn["role"] != "assistant"]
    return tokenizer.encode(chat.prompt(turns), add_special_tokens=False)


def training_ids(
    tokenizer, chat: ChatFormat, rows: Sequence[Sequence[dict[str, str]]], loss_on: str = "answer"
) -> tuple[list[list[int]], list[list[int]]]:
    """(input_ids, labels) of every chat in `rows`, all of a row's segments tokenized in one batch.

    `labels` repeat the ids where the loss is taken ("answer": the model's turns; "text": everything) and
    hold IGNORED elsewhere.
    """
    pieces = [chat.segments(turns) for turns in rows]
    encoded = tokenizer([text for row in pieces for text, _ in row], add_special_tokens=False)["input_ids"]
    input_ids, labels, at = [], [], 0
    for row in pieces:
        ids, wanted = [], []
        for (_, supervised), piece in zip(row, encoded[at : at + len(row)], strict=True):
            ids += piece
            wanted += piece if supervised or loss_on == "text" else [IGNORED] * len(piece)
        at += len(row)
        input_ids.append(ids)
        labels.append(wanted)
    return input_ids, labels


def letter_ids(tokenizer, letters: str = LETTERS) -> list[int]:
    """The token of each letter as an answer's first token; PromptError where a letter is not one token."""
    ids = [tokenizer.encode(letter, add_special_tokens=False) for letter in letters]
    for letter, tokens in zip(letters, ids, strict=True):
        if len(tokens) != 1:
            raise PromptError(
                f"the letter {letter} is {len(tokens)} tokens for this tokenizer; it cannot be scored"
            )
    return [tokens[0] for tokens in ids]
