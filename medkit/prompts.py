"""Prompts: the paper's instruction, the exam question, and where in the tokens the answer begins.

A row is written as pieces: what the template puts between contents, and the contents themselves, each
tokenized on its own. They meet where no token spans both, so the tokens are those of the whole text; what
the model sees before an answer in training is, token for token, the prompt it gets when it is scored; and
a content that spells a special token, such as "<|eot_id|>" in a question, stays text and ends no turn.
tests/test_prompts.py holds all three against the real Llama 3 and SmolLM2 tokenizers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

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
# SmolLM2's BOS is <|im_start|> itself, and stands once.
CHATML = (
    "{% if bos_token != '<|im_start|>' %}{{ bos_token }}{% endif %}"
    "{% for m in messages %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
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


class Piece(NamedTuple):
    text: str
    supervised: bool  # the model is to say it
    content: bool  # a message's own text, not the template's


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
        """Raises PromptError where there is no template, or one that is more than a concatenation."""
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise PromptError("the tokenizer is not a fast one (tokenizer.json); medkit needs that")
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
        made._check_joints(tokenizer)
        return made

    def _check_joints(self, tokenizer) -> None:
        """PromptError where a token spans a content and the template's text beside it."""
        for first in ("word", "7 mg", "(C)", "A", "\u00e4", "- x"):
            turns = [{"role": role, "content": f"{first} y."} for role in ("system", "user", "assistant")]
            whole = _encode(tokenizer, [self.text(turns)], special=True)[0]
            if token_arrays(tokenizer, self, [turns])[0].tolist() != whole:
                raise PromptError(
                    "the tokenizer joins the chat template's text and a message's into one token; "
                    "medkit cannot mask it"
                )

    def pieces(self, turns: Sequence[dict[str, str]]) -> list[Piece]:
        """What concatenates to the rendered chat; the model's turns are supervised up to and with the
        end-of-turn token."""
        opening, made, pending = dict(self.before), [], self.bos
        for turn in turns:
            answer = turn["role"] == "assistant"
            made += [
                Piece(pending + opening[turn["role"]], False, False),
                Piece(turn["content"], answer, True),
            ]
            if answer:
                made.append(Piece(self.after, True, False))
            pending = self.between if answer else self.after + self.between
        return [*made, Piece(pending, False, False)] if pending else made

    def prompt_pieces(self, turns: Sequence[dict[str, str]]) -> list[Piece]:
        """The same up to where the model's answer begins; `turns` end with the user."""
        *made, last = self.pieces(turns)
        return [*made, Piece(last.text + dict(self.before)["assistant"], False, False)]

    def text(self, turns: Sequence[dict[str, str]]) -> str:
        return "".join(piece.text for piece in self.pieces(turns))

    def prompt(self, turns: Sequence[dict[str, str]]) -> str:
        return "".join(piece.text for piece in self.prompt_pieces(turns))


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
    return _arrays(tokenizer, [chat.prompt_pieces(turns)], "answer")[0].tolist()


def training_ids(
    tokenizer, chat: ChatFormat, rows: Sequence[Sequence[dict[str, str]]], loss_on: str = "answer"
) -> tuple[list[list[int]], list[list[int]]]:
    """(input_ids, labels) of every chat in `rows`, as lists; see `token_arrays`."""
    ids, labels, lengths = token_arrays(tokenizer, chat, rows, loss_on)
    ends = np.cumsum(lengths)[:-1]
    return [a.tolist() for a in np.split(ids, ends)], [a.tolist() for a in np.split(labels, ends)]


def token_arrays(
    tokenizer, chat: ChatFormat, rows: Sequence[Sequence[dict[str, str]]], loss_on: str = "answer"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(input_ids, labels, tokens of each row) of the chats in `rows`: two int32 arrays with all rows'
    tokens after one another, and one of len(rows).

    Labels repeat the ids where the loss is taken ("answer": the model's turns; "text": everything) and
    hold IGNORED elsewhere. Every distinct piece of the batch is tokenized once.
    """
    return _arrays(tokenizer, [chat.pieces(turns) for turns in rows], loss_on)


def _arrays(tokenizer, rows: Sequence[Sequence[Piece]], loss_on: str):
    index: dict[tuple[str, bool], int] = {}
    order = [index.setdefault((p.text, p.content), len(index)) for row in rows for p in row]
    encoded: list = [None] * len(index)
    for content in (True, False):
        texts = {text: i for (text, kind), i in index.items() if kind == content}
        for i, ids in zip(texts.values(), _encode(tokenizer, list(texts), special=not content), strict=True):
            encoded[i] = np.array(ids, np.int32)
    sizes = np.array([len(ids) for ids in encoded], np.int64)[order]
    ids = np.concatenate([encoded[i] for i in order])
    wanted = np.array([p.supervised or loss_on == "text" for row in rows for p in row])
    starts = np.cumsum([0, *(len(row) for row in rows[:-1])])
    labels = np.where(np.repeat(wanted, sizes), ids, np.int32(IGNORED))
    return ids, labels, np.add.reduceat(sizes, starts)


def _encode(tokenizer, texts: list[str], *, special: bool) -> list[list[int]]:
    """Token ids of each text; `special`: the names of special tokens in it mean these tokens."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()  # whoever padded last has left it on; transformers sets it anew at every call
    backend.no_truncation()
    before, backend.encode_special_tokens = backend.encode_special_tokens, not special
    try:
        return [one.ids for one in backend.encode_batch_fast(texts, add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before


def letter_ids(tokenizer, letters: str = LETTERS) -> list[int]:
    """The token of each letter as an answer's first token; PromptError where a letter is not one token."""
    ids = [tokenizer.encode(letter, add_special_tokens=False) for letter in letters]
    for letter, tokens in zip(letters, ids, strict=True):
        if len(tokens) != 1:
            raise PromptError(
                f"the letter {letter} is {len(tokens)} tokens for this tokenizer; it cannot be scored"
            )
    return [tokens[0] for tokens in ids]


def letter_place(tokenizer, target: str) -> dict:
    """Where the letter stands in what was trained, as letter_scoring.score takes it: `encode` gives an item's
    token ids up to there, `letter_tokens` has the token of each letter.

    target "letter": it comes first. "letter_and_text": after `Answer:`, where it is another token (" C").
    Raises PromptError where a letter is not one token there.
    """
    chat, lead, letters = ChatFormat.from_tokenizer(tokenizer), [], []
    if target == "letter":
        letters = letter_ids(tokenizer)
    else:
        lead = tokenizer.encode("Answer:", add_special_tokens=False)
        answers = [tokenizer.encode(f"Answer: {letter})", add_special_tokens=False) for letter in LETTERS]
        letters = [answer[len(lead)] for answer in answers]
        if len(set(letters)) < len(LETTERS) or any(answer[: len(lead)] != lead for answer in answers):
            raise PromptError(
                "`Answer: A)` does not give each letter a token of its own; set data.mcq_target=letter"
            )
    return {"encode": lambda item: prompt_ids(tokenizer, chat, item) + lead, "letter_tokens": letters}
