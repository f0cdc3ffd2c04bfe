"""Chat templates: a conversation as text and tokens, and where in the tokens each answer begins.

A template is rendered once per sequence of roles, with markers in place of the messages' contents. The text
between the markers belongs to the template. A template can thus treat each turn differently, yet rows are
assembled without Jinja.

The tokens are those of the whole text, with two exceptions. A message that spells a control token, such as
"<|eot_id|>" in a question, is tokenized as text and ends no turn. An answer begins where the tokens of
different answers diverge, so the tokens before an answer in training are exactly the prompt used in scoring.
tests/test_chat_template.py checks this on the templates of a dozen model families.
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
# is <|im_start|>, which is not repeated.
CHATML = (
    "{% if bos_token != '<|im_start|>' %}{{ bos_token }}{% endif %}"
    "{% for m in messages %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

IGNORED = -100  # the label that torch's cross entropy ignores
MARK = re.compile(r"Zq(\d+)x")  # content placeholder: letters and digits, which no template escapes or trims
EXAM = ("system", "user", "assistant")
TALK = ("system", "user", "assistant", "user", "assistant")
PROBE_ANSWERS = ("A", "the")  # the tokens before both belong to the prompt
# Content beginnings that a tokenizer might join with the template's text before them.
PROBE_BEGINNINGS = ("word", "7 mg", "(C)", "A", "\u00e4", "- x")

_date: datetime.date | None = None


class PromptError(MedkitError):
    """The tokenizer or its chat template cannot be used for training and scoring."""


def use_date(date: str) -> None:
    """Make templates that print today's date print `date` (YYYY-MM-DD) in this process.

    A run's prompts thus show the day it began, even when it is resumed or scored later.
    """
    global _date
    _date = datetime.date.fromisoformat(date)


class Piece(NamedTuple):
    """A part of a conversation that is tokenized separately, up to the next control token."""

    context: str  # the text before the answer
    answer: str | None = None  # the model's text; "" at the end of a prompt
    ends_answer: bool = False  # the first token ends an answer
    continues: bool = False  # begins inside a message's content


@dataclass
class ChatFormat:
    """A tokenizer's chat template.

    If a template rejects, drops or moves the system message, its text is prepended to the first user turn.
    Thinking is switched off in templates that support it.
    """

    template: str
    render: Callable[..., str] = field(repr=False)
    control: re.Pattern = field(repr=False)  # matches the names of control tokens
    empty_thought: str = ""  # empty thinking block that the generation prompt opens an answer with
    example: str = ""  # TALK rendered, with MARKs as contents
    ends: tuple[str, ...] = ()  # control tokens that end an answer, the last answer's first
    _texts_by_roles: dict = field(default_factory=dict, repr=False)  # cached results of _template_texts

    @classmethod
    def from_tokenizer(cls, tokenizer) -> "ChatFormat":
        """Load the tokenizer's template. Raises PromptError if it cannot be used for training and scoring."""
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise PromptError("the tokenizer has no fast implementation; use a model with a tokenizer.json")
        try:
            template = tokenizer.get_chat_template()
        except ValueError:
            raise PromptError("the tokenizer has no chat template; use an instruct model") from None

        def render(turns, add_generation_prompt: bool = False) -> str:
            date = _date or datetime.date.today()
            return tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=False,
                thinking=False,
                strftime_now=lambda format: date.strftime(format),
            )

        chat = cls(template, render, _control_tokens(tokenizer, template))
        chat.empty_thought = chat._find_empty_thought()
        chat._texts_by_roles.clear()  # computed without it
        chat.example = chat.text(_marked(TALK))
        turns, texts = chat._arrange(_marked(TALK))
        endings = [text for turn, text in zip(turns, texts[1:], strict=True) if turn["role"] == "assistant"]
        chat.ends = tuple(dict.fromkeys(next(chat.control.finditer(text))[0] for text in reversed(endings)))
        chat._check(tokenizer)
        return chat

    @property
    def identity(self) -> tuple:
        """Equal for templates with the same output."""
        return self.template, self.empty_thought, self.example

    def text(self, turns: Sequence[dict[str, str]]) -> str:
        """The rendered conversation."""
        turns, texts = self._arrange(turns)
        return texts[0] + "".join(turn["content"] + text for turn, text in zip(turns, texts[1:], strict=True))

    def prompt(self, turns: Sequence[dict[str, str]]) -> str:
        """The rendered text up to where the answer begins. `turns` end with the user."""
        turns, texts = self._arrange([*turns, {"role": "assistant", "content": ""}])
        return "".join(text + turn["content"] for turn, text in zip(turns, texts[:-1], strict=True))

    def pieces(self, turns: Sequence[dict[str, str]]) -> list[Piece]:
        """Split `text` into pieces that no token of the tokenizer spans.

        Pieces begin at the first and the last control token of each template text. Where a message spells a
        control token, a piece also begins inside its name, so that no piece contains the whole name.
        """
        turns, texts = self._arrange(turns)
        starts = {0: Piece("")}  # position in the text -> flags of the piece that begins there
        answer_starts = []  # positions where an answer begins, or continues in another piece
        text = ""
        for turn, template_text in zip([{"role": "", "content": ""}, *turns], texts, strict=True):
            is_answer, offset = turn["role"] == "assistant", 0
            answer_starts += [len(text)] * is_answer
            while match := self.control.search(turn["content"], offset):
                offset = match.start() + 1
                starts[len(text) + offset] = Piece("", continues=True)
                answer_starts += [len(text) + offset] * is_answer
            text += turn["content"]
            control = [len(text) + match.start() for match in self.control.finditer(template_text)]
            starts |= dict.fromkeys(control[-1:], Piece(""))
            starts |= dict.fromkeys(control[:1], Piece("", ends_answer=is_answer))
            text += template_text
        pieces = []
        for start, end in pairwise([*sorted(starts), len(text)]):
            # An answer cannot begin at the control token that opens a piece.
            earliest = start if starts[start].continues or start == 0 else start + 1
            split = next((position for position in answer_starts if earliest <= position <= end), end)
            answer = text[split:end] if split in answer_starts else None
            if start < end:
                pieces.append(starts[start]._replace(context=text[start:split], answer=answer))
        return pieces

    def prompt_pieces(self, turns: Sequence[dict[str, str]]) -> list[Piece]:
        """The pieces of `prompt`. `turns` end with the user."""
        pieces = self.pieces([*turns, {"role": "assistant", "content": ""}])
        last = max(i for i, piece in enumerate(pieces) if piece.answer is not None)
        return [*pieces[:last], pieces[last]._replace(answer="")]

    def _arrange(self, turns) -> tuple[Sequence[dict[str, str]], list[str]]:
        """(turns, texts): the turns in a form that the template accepts, and its texts before the first
        turn's content and after each turn's."""
        for arranged in (turns, _system_as_user(turns)):
            roles = tuple(turn["role"] for turn in arranged)
            if roles not in self._texts_by_roles:
                self._texts_by_roles[roles] = self._template_texts(roles)
            if not isinstance(texts := self._texts_by_roles[roles], str):
                return arranged, texts
        raise PromptError(f"the chat template {texts}; use another model, or set model.chat_template=chatml")

    def _template_texts(self, roles: tuple[str, ...]) -> list[str] | str:
        """The template's texts around the contents of these roles, or the reason it cannot be used."""
        try:
            rendered = self.render(_marked(roles))
        except Exception as error:  # template code can raise anything
            return f"refuses a conversation of {', '.join(roles[:3])} ({first_line(error)})"
        first, *pairs = MARK.split(rendered)
        if pairs[::2] != [str(i) for i in range(len(roles))]:
            return "repeats, drops or moves a message's content"
        texts = [first, *pairs[1::2]]
        for role, text in zip(roles, texts[1:], strict=True):
            if role == "assistant" and not self.control.search(text):
                return f"ends an answer with {text!r}, not with a special token"
        if roles[-1] == "assistant":
            texts[-2] += self.empty_thought
        return texts

    def _find_empty_thought(self) -> str:
        """The empty thinking block with which the generation prompt opens an answer; "" if there is none.

        An unclosed block is dropped because thinking is off.
        """
        turns, _ = self._arrange(_marked(EXAM))
        trained = self.prompt(turns[:-1])
        generation = self.render(turns[:-1], add_generation_prompt=True)
        added = generation.removeprefix(trained)
        if trained.startswith(generation) or not added.strip():
            return ""
        if added == generation or "think" not in added.lower():
            raise PromptError(
                f"the chat template's generation prompt ends in {generation[-40:]!r}, but in a conversation "
                f"answers follow {trained[-40:]!r}; use another model, or set model.chat_template=chatml"
            )
        return added if "/think" in added.lower() else ""

    def _check(self, tokenizer) -> None:
        """Raises PromptError if the template rewrites contents, or the pieces' tokens are not the text's."""
        for beginning in PROBE_BEGINNINGS:
            for roles in (EXAM, TALK):
                content = f"{beginning} y.\n\n1) <b>'x'\\ \"z\""
                turns = [{"role": role, "content": content} for role in roles]
                text, rendered = self.text(turns), self.render(self._arrange(turns)[0])
                if text.replace(self.empty_thought, "") != rendered.replace(self.empty_thought, ""):
                    raise PromptError("the chat template rewrites a message's text; use another model")
                ids = _encode(tokenizer, [text])[0]
                if token_arrays(tokenizer, self, [turns])[0].tolist() != ids:
                    raise PromptError(
                        "the tokenizer joins the chat template's text and an answer's into one token; "
                        "use another model"
                    )


def _control_tokens(tokenizer, template: str) -> re.Pattern:
    """Matches the names of control tokens: special tokens, and added tokens that the template writes."""
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
    """The turns with the system text prepended to the first user turn, or as a user turn of its own if an
    assistant turn follows."""
    first, *others = turns
    if first["role"] != "system" or not others:
        return list(turns)
    if others[0]["role"] != "user":
        return [first | {"role": "user"}, *others]
    return [others[0] | {"content": f"{first['content']}\n\n{others[0]['content']}"}, *others[1:]]


def training_ids(
    tokenizer, chat: ChatFormat, rows: Sequence[Sequence[dict[str, str]]], loss_on: str = "answer"
) -> tuple[list[list[int]], list[list[int]]]:
    """(input_ids, labels) of each chat in `rows`, as lists; see `token_arrays`."""
    ids, labels, lengths = token_arrays(tokenizer, chat, rows, loss_on)
    ends = np.cumsum(lengths)[:-1]
    return [a.tolist() for a in np.split(ids, ends)], [a.tolist() for a in np.split(labels, ends)]


def prompt_ids(tokenizer, chat: ChatFormat, turns: Sequence[dict[str, str]]) -> list[int]:
    """Token ids up to where the answer begins. `turns` end with the user."""
    return _piece_arrays(tokenizer, chat, [chat.prompt_pieces(turns)], "answer")[0].tolist()


def token_arrays(
    tokenizer, chat: ChatFormat, rows: Sequence[Sequence[dict[str, str]]], loss_on: str = "answer"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(input_ids, labels, lengths) of the chats in `rows`: two int32 arrays with the tokens of all rows
    concatenated, and the number of tokens of each row.

    Labels equal the ids where the loss is computed and IGNORED elsewhere. `loss_on`: "answer" for the
    assistant turns and the tokens that end them, "text" for everything. Distinct pieces are tokenized once.
    """
    return _piece_arrays(tokenizer, chat, [chat.pieces(turns) for turns in rows], loss_on)


def _piece_arrays(tokenizer, chat: ChatFormat, rows: Sequence[Sequence[Piece]], loss_on: str):
    index: dict[Piece, int] = {}
    order = [index.setdefault(piece, len(index)) for row in rows for piece in row]
    # A piece that begins inside a content is encoded after a control token, which is removed afterwards.
    control = chat.ends[0]
    contexts = {piece: (control if piece.continues else "") + piece.context for piece in index}
    texts = [context + (piece.answer or "") for piece, context in contexts.items()]
    texts += [contexts[p] + answer for p in index if p.answer is not None for answer in PROBE_ANSWERS]
    texts = list(dict.fromkeys(texts))
    encoded = dict(zip(texts, _encode(tokenizer, texts), strict=True))
    ids, has_loss = [], []
    for piece, context in contexts.items():
        tokens = encoded[context + (piece.answer or "")]
        answer_start = len(tokens)
        if piece.answer is not None:
            probes = [encoded[context + answer] for answer in PROBE_ANSWERS]
            prompt = probes[0][: _common_prefix_length(probes)]
            if not piece.answer:
                tokens = prompt
            elif tokens[: len(prompt)] != prompt:  # this answer alone would merge with the text before it
                tokens = prompt + _encode(tokenizer, [control + piece.answer])[0][1:]
            answer_start = len(prompt)
        mask = np.arange(len(tokens)) >= (0 if loss_on == "text" else answer_start)
        mask[: piece.ends_answer] = True
        ids.append(np.array(tokens[piece.continues :], np.int32))
        has_loss.append(mask[piece.continues :])
    sizes = np.array([len(tokens) for tokens in ids], np.int64)[order]
    input_ids = np.concatenate([ids[i] for i in order])
    labels = np.where(np.concatenate([has_loss[i] for i in order]), input_ids, np.int32(IGNORED))
    row_starts = np.cumsum([0, *(len(row) for row in rows[:-1])])
    return input_ids, labels, np.add.reduceat(sizes, row_starts)


def _common_prefix_length(rows: Sequence[Sequence[int]]) -> int:
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def _encode(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text. Names of special tokens become these tokens."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()  # an earlier call may have enabled it; transformers resets it on each call
    backend.no_truncation()
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def answer_position(
    tokenizer, chat: ChatFormat, chats: Sequence[Sequence[dict[str, str]]]
) -> tuple[list[int], list[int]]:
    """(lead, tokens) for chats that end with different answers to one question: the token ids between the
    prompt and the one token where the answers differ, and each chat's token there.

    Raises PromptError if the answers differ in more than one token.
    """
    rows, _ = training_ids(tokenizer, chat, chats)
    start, position = len(prompt_ids(tokenizer, chat, chats[0][:-1])), _common_prefix_length(rows)
    tokens = [row[position] for row in rows]
    tails_differ = any(row[position + 1 :] != rows[0][position + 1 :] for row in rows)
    if position < start or len(set(tokens)) < len(rows) or tails_differ:
        raise PromptError("the letters are not one token each for this tokenizer")
    return rows[0][start:position], tokens
