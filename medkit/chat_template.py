"""Chat templates: a conversation as text and tokens, and where in the tokens each answer begins.

A template is rendered once for each sequence of roles, with marks instead of the messages' contents; the
text between the marks is the template's. So a template may treat any turn in its own way, and rows are still
put together without Jinja.

The tokens are those of the whole text, with two exceptions. A content that spells a control token, such as
"<|eot_id|>" in a question, stays text and ends no turn. And an answer begins where the tokens of different
answers diverge, so that what the model sees before an answer in training is, token for token, the prompt it
is scored with. tests/test_chat_template.py checks this on the templates of a dozen model families.
"""

import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from typing import NamedTuple

import numpy as np

from medkit import MedkitError, first_line

# "chatml" of the released notebooks: ChatML with the model's end token instead of <|im_end|>. SmolLM2's BOS
# is <|im_start|> itself and is not repeated.
CHATML = (
    "{% if bos_token != '<|im_start|>' %}{{ bos_token }}{% endif %}"
    "{% for m in messages %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

IGNORED = -100  # the label torch's cross entropy leaves out
MARK = re.compile(r"Zq(\d+)x")  # instead of a content: letters and digits, which no template escapes or trims
EXAM = ("system", "user", "assistant")
TALK = ("system", "user", "assistant", "user", "assistant")
ANSWERS = ("A", "the")  # the tokens that come before both are the prompt's
# Beginnings of contents that a tokenizer might join with the template's text before them.
BEGINNINGS = ("word", "7 mg", "(C)", "A", "\u00e4", "- x")

_date: datetime.date | None = None


class PromptError(MedkitError):
    """A tokenizer that cannot render or score what medkit asks of it."""


def use_date(date: str) -> None:
    """Let templates that print today's date print `date` (YYYY-MM-DD) in this process: a run's prompts show
    the day on which it began, whenever it is resumed or scored."""
    global _date
    _date = datetime.date.fromisoformat(date)


class Piece(NamedTuple):
    """A part of a conversation that is tokenized on its own: it ends where a control token follows."""

    before: str
    answer: str | None = None  # at the piece's end, what the model should say; "" where a prompt ends
    ends_answer: bool = False  # its first token ends an answer
    continues: bool = False  # it begins within a content


@dataclass
class ChatFormat:
    """A tokenizer's chat template as medkit uses it.

    Where a template refuses or drops a system text, or shows it elsewhere than before the first turn, the
    system text opens the first user turn. Templates that can think are asked with thinking off.
    """

    template: str
    render: Callable[..., str] = field(repr=False)
    control: re.Pattern = field(repr=False)  # the names of control tokens
    thought: str = ""  # an empty block of thought that the template opens an answer with when it asks
    example: str = ""  # TALK rendered, with marks for contents
    ends: tuple[str, ...] = ()  # the control tokens that end an answer, the last answer's first
    _known: dict = field(default_factory=dict, repr=False)  # by roles: the texts, or why there are none

    @classmethod
    def from_tokenizer(cls, tokenizer) -> "ChatFormat":
        """Raises PromptError where there is no template, or one that cannot both train and score."""
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise PromptError("the tokenizer is not a fast one; take a model with a tokenizer.json")
        try:
            template = tokenizer.get_chat_template()
        except ValueError:
            raise PromptError("the tokenizer has no chat template; take an instruct model") from None

        def render(turns, asks: bool = False) -> str:
            day = _date or datetime.date.today()
            return tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=asks,
                enable_thinking=False,
                thinking=False,
                strftime_now=lambda format: day.strftime(format),
            )

        chat = cls(template, render, _control_tokens(tokenizer, template))
        chat.thought = chat._thought()
        chat._known.clear()  # these texts lack it
        chat.example = chat.text(_marked(TALK))
        turns, texts = chat._arranged(_marked(TALK))
        after = [text for turn, text in zip(turns, texts[1:], strict=True) if turn["role"] == "assistant"]
        chat.ends = tuple(dict.fromkeys(next(chat.control.finditer(text))[0] for text in reversed(after)))
        chat._check(tokenizer)
        return chat

    @property
    def identity(self) -> tuple:
        """Equal for templates that render alike."""
        return self.template, self.thought, self.example

    def text(self, turns: Sequence[dict[str, str]]) -> str:
        """The conversation as the template writes it."""
        turns, texts = self._arranged(turns)
        return texts[0] + "".join(turn["content"] + text for turn, text in zip(turns, texts[1:], strict=True))

    def prompt(self, turns: Sequence[dict[str, str]]) -> str:
        """The text up to where the model's answer begins; `turns` end with the user."""
        turns, texts = self._arranged([*turns, {"role": "assistant", "content": ""}])
        return "".join(text + turn["content"] for turn, text in zip(turns, texts[:-1], strict=True))

    def pieces(self, turns: Sequence[dict[str, str]]) -> list[Piece]:
        """What concatenates to `text`. No token of the tokenizer spans two pieces: they begin at the first
        and the last control token of each text of the template. They also begin within each control token's
        name in a content, so that none has the whole name."""
        turns, texts = self._arranged(turns)
        begins = {0: Piece("")}  # place in the whole text -> how a piece begins there
        answers = []  # places where an answer begins, or continues in another piece
        whole = ""
        for turn, text in zip([{"role": "", "content": ""}, *turns], texts, strict=True):
            is_answer, at = turn["role"] == "assistant", 0
            answers += [len(whole)] * is_answer
            while match := self.control.search(turn["content"], at):
                at = match.start() + 1
                begins[len(whole) + at] = Piece("", continues=True)
                answers += [len(whole) + at] * is_answer
            whole += turn["content"]
            control = [len(whole) + match.start() for match in self.control.finditer(text)]
            begins |= dict.fromkeys(control[-1:], Piece(""))
            begins |= dict.fromkeys(control[:1], Piece("", ends_answer=is_answer))
            whole += text
        pieces = []
        for begin, end in pairwise([*sorted(begins), len(whole)]):
            # An answer does not begin with the control token that opens a piece.
            earliest = begin if begins[begin].continues or begin == 0 else begin + 1
            at = next((place for place in answers if earliest <= place <= end), end)
            answer = whole[at:end] if at in answers else None
            if begin < end:
                pieces.append(begins[begin]._replace(before=whole[begin:at], answer=answer))
        return pieces

    def prompt_pieces(self, turns: Sequence[dict[str, str]]) -> list[Piece]:
        """The same up to where the model's answer begins; `turns` end with the user."""
        pieces = self.pieces([*turns, {"role": "assistant", "content": ""}])
        last = max(i for i, piece in enumerate(pieces) if piece.answer is not None)
        return [*pieces[:last], pieces[last]._replace(answer="")]

    def _arranged(self, turns) -> tuple[Sequence[dict[str, str]], list[str]]:
        """The turns as the template takes them, and its texts around their contents: one more than turns."""
        for arranged in (turns, _system_as_user(turns)):
            roles = tuple(turn["role"] for turn in arranged)
            if roles not in self._known:
                self._known[roles] = self._texts(roles)
            if not isinstance(texts := self._known[roles], str):
                return arranged, texts
        raise PromptError(f"the chat template {texts}; take another model, or set model.chat_template=chatml")

    def _texts(self, roles: tuple[str, ...]) -> list[str] | str:
        """The template's texts around contents in this order of roles, or why it cannot be used so."""
        try:
            whole = self.render(_marked(roles))
        except Exception as error:  # whatever a template's code raises
            return f"refuses a conversation of {', '.join(roles[:3])} ({first_line(error)})"
        first, *pairs = MARK.split(whole)
        if pairs[::2] != [str(i) for i in range(len(roles))]:
            return "repeats, drops or moves a message's content"
        texts = [first, *pairs[1::2]]
        for role, text in zip(roles, texts[1:], strict=True):
            if role == "assistant" and not self.control.search(text):
                return f"ends an answer with {text!r}, not with a special token"
        if roles[-1] == "assistant":
            texts[-2] += self.thought
        return texts

    def _thought(self) -> str:
        """What the template opens an answer with, when it asks for one, beyond what it shows before a given
        answer: an empty block of thought. A block that is left open is left out: thinking is off."""
        turns, _ = self._arranged(_marked(EXAM))
        shown = self.prompt(turns[:-1])
        asked = self.render(turns[:-1], asks=True)
        more = asked.removeprefix(shown)
        if shown.startswith(asked) or not more.strip():
            return ""
        if more == asked or "think" not in more.lower():
            raise PromptError(
                f"the chat template asks with {asked[-40:]!r} and shows an answer after {shown[-40:]!r}; "
                "take another model, or set model.chat_template=chatml"
            )
        return more if "/think" in more.lower() else ""

    def _check(self, tokenizer) -> None:
        """PromptError where the template rewrites contents, or the pieces' tokens are not the text's."""
        for first in BEGINNINGS:
            for roles in (EXAM, TALK):
                said = [{"role": role, "content": f"{first} y.\n\n1) <b>'x'\\ \"z\""} for role in roles]
                turns, _ = self._arranged(said)
                if self.text(said).replace(self.thought, "") != self.render(turns).replace(self.thought, ""):
                    raise PromptError("the chat template rewrites a message's text; take another model")
                whole = _encode(tokenizer, [self.text(said)])[0]
                if token_arrays(tokenizer, self, [said])[0].tolist() != whole:
                    raise PromptError(
                        "the tokenizer joins the chat template's text and an answer's into one token; "
                        "take another model"
                    )


def _control_tokens(tokenizer, template: str) -> re.Pattern:
    """The names of the tokens that are not text: special ones, and those that the template writes."""
    names = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content.strip() and token.content in template)
    }
    names = sorted((name for name in names if len(name) > 1), key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


def _marked(roles: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": f"Zq{i}x"} for i, role in enumerate(roles)]


def _system_as_user(turns) -> list[dict[str, str]]:
    """The turns with the system text at the beginning of the first user turn, or as a turn of its own before
    an assistant's."""
    first, *others = turns
    if first["role"] != "system" or not others:
        return list(turns)
    if others[0]["role"] != "user":
        return [first | {"role": "user"}, *others]
    return [others[0] | {"content": f"{first['content']}\n\n{others[0]['content']}"}, *others[1:]]


def training_ids(
    tokenizer, chat: ChatFormat, rows: Sequence[Sequence[dict[str, str]]], loss_on: str = "answer"
) -> tuple[list[list[int]], list[list[int]]]:
    """(input_ids, labels) of every chat in `rows`, as lists; see `token_arrays`."""
    ids, labels, lengths = token_arrays(tokenizer, chat, rows, loss_on)
    ends = np.cumsum(lengths)[:-1]
    return [a.tolist() for a in np.split(ids, ends)], [a.tolist() for a in np.split(labels, ends)]


def asked_ids(tokenizer, chat: ChatFormat, turns: Sequence[dict[str, str]]) -> list[int]:
    """Token ids up to where the answer begins; `turns` end with the user."""
    return _arrays(tokenizer, chat, [chat.prompt_pieces(turns)], "answer")[0].tolist()


def token_arrays(
    tokenizer, chat: ChatFormat, rows: Sequence[Sequence[dict[str, str]]], loss_on: str = "answer"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(input_ids, labels, tokens of each row) of the chats in `rows`: two int32 arrays with all rows'
    tokens after one another, and one of len(rows).

    Labels repeat the ids where the loss is taken ("answer": the model's turns with their ends; "text":
    everything) and hold IGNORED elsewhere. Every distinct piece of the batch is tokenized once.
    """
    return _arrays(tokenizer, chat, [chat.pieces(turns) for turns in rows], loss_on)


def _arrays(tokenizer, chat: ChatFormat, rows: Sequence[Sequence[Piece]], loss_on: str):
    index: dict[Piece, int] = {}
    order = [index.setdefault(piece, len(index)) for row in rows for piece in row]
    # A piece that begins within a content is encoded after a control token, which is then left off.
    context = chat.ends[0]
    starts = {piece: (context if piece.continues else "") + piece.before for piece in index}
    texts = [starts[piece] + (piece.answer or "") for piece in index]
    texts += [starts[p] + a for p in index if p.answer is not None for a in ANSWERS]
    texts = list(dict.fromkeys(texts))
    encoded = dict(zip(texts, _encode(tokenizer, texts), strict=True))
    ids, learned = [], []
    for piece, start in starts.items():
        tokens = encoded[start + (piece.answer or "")]
        answer_from = len(tokens)
        if piece.answer is not None:
            prompt = encoded[start + ANSWERS[0]][: _same([encoded[start + answer] for answer in ANSWERS])]
            if not piece.answer:
                tokens = prompt
            elif tokens[: len(prompt)] != prompt:  # only this answer would join with the text before it
                tokens = prompt + _encode(tokenizer, [context + piece.answer])[0][1:]
            answer_from = len(prompt)
        mask = np.arange(len(tokens)) >= (0 if loss_on == "text" else answer_from)
        mask[: piece.ends_answer] = True
        ids.append(np.array(tokens[piece.continues :], np.int32))
        learned.append(mask[piece.continues :])
    sizes = np.array([len(tokens) for tokens in ids], np.int64)[order]
    input_ids = np.concatenate([ids[i] for i in order])
    labels = np.where(np.concatenate([learned[i] for i in order]), input_ids, np.int32(IGNORED))
    begins = np.cumsum([0, *(len(row) for row in rows[:-1])])
    return input_ids, labels, np.add.reduceat(sizes, begins)


def _same(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all of these begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def _encode(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text; the names of special tokens in it mean these tokens."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()  # an earlier call may have left it on; transformers sets it anew at every call
    backend.no_truncation()
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def answer_place(
    tokenizer, chat: ChatFormat, chats: Sequence[Sequence[dict[str, str]]]
) -> tuple[list[int], list[int]]:
    """Where answers to one question differ in a single token: (the tokens between the prompt's end and there,
    each chat's token). `chats` end with the answers; PromptError where more tokens differ."""
    rows, _ = training_ids(tokenizer, chat, chats)
    start, place = len(asked_ids(tokenizer, chat, chats[0][:-1])), _same(rows)
    tokens = [row[place] for row in rows]
    ends_differ = any(row[place + 1 :] != rows[0][place + 1 :] for row in rows)
    if place < start or len(set(tokens)) < len(rows) or ends_differ:
        raise PromptError("the letters are not one token each for this tokenizer")
    return rows[0][start:place], tokens
