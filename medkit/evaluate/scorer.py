"""Similarity of an answer to a physician's: BERTScore and ROUGE-L.

Both compare wording. Neither measures whether an answer is correct or safe.
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

BERTSCORE = ("precision", "recall", "f1")
PAIRS_AT_ONCE = 64  # bert-score keeps all token states of a call: 2 MB per text with roberta-large


class Scorer:
    """BERTScore (Zhang et al. 2019, bert-score library) and ROUGE-L.

    model: a hub id, a model folder, or "minilm" (all-MiniLM-L6-v2 from its PyPI wheel).
    layers: the hidden layer to compare (roberta-large: 17, MiniLM: 6).

    Attributes: `hash` is the library's, with the model's name instead of a folder's path. `baseline` has the
    precision, recall and F1 of unrelated sentences, which the library includes for some hub models and
    layers; otherwise it is empty. `limit` is the number of tokens after which the encoder truncates a text.

    Raises MedkitError if the encoder cannot be loaded.
    """

    def __init__(self, model: str | Path = "roberta-large", layers: int = 17):
        folder = smollm2.minilm_folder() if model == "minilm" else Path(model)
        self.name, self.layers, model_type = str(model), layers, str(model)
        if folder.is_dir():
            self.name = "all-MiniLM-L6-v2" if model == "minilm" else folder.resolve().name
            model_type = "."  # bert-score loads any path that contains "t5" as a T5
        try:
            with contextlib.chdir(folder) if folder.is_dir() else contextlib.nullcontext():
                self._library = BERTScorer(model_type=model_type, num_layers=layers, lang="en")
        except (OSError, ValueError, AssertionError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MedkitError(
                f"BERTScore encoder {self.name}, layer {layers}, cannot be loaded ({reason[:150]}): "
                "give a model folder, a hub id that can be reached, or minilm with layer 6"
            ) from error
        self.hash = self.name + self._library.hash.removeprefix(model_type)
        self._tokenizer = self._library._tokenizer
        self._fix_tokenizer()
        self.limit = self._tokenizer.model_max_length
        self.baseline: dict[str, float] = {}
        if Path(self._library.baseline_path).is_file():
            self.baseline = dict(zip(BERTSCORE, self._library.baseline_vals.tolist(), strict=True))
        self._rouge = RougeScorer(["rougeL"], use_stemmer=True)

    def _fix_tokenizer(self):
        """Restore two behaviours of Transformers 4 that bert-score 0.3.13 relies on."""
        config = self._library._model.config
        if self._tokenizer.model_max_length > config.max_position_embeddings:  # no limit was saved
            # RoBERTa's positions start after its padding index: 514 positions hold 512 tokens
            offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
            self._tokenizer.model_max_length = config.max_position_embeddings - offset
        if isinstance(self._tokenizer, RobertaTokenizer):
            # encode() ignores add_prefix_space=True, which changes the first word's token
            self._tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)

    @property
    def settings(self) -> dict:
        """The scorer's settings, for the summary."""
        return {
            "model": self.name,
            "layers": self.layers,
            "hash": self.hash,
            "rescaled": bool(self.baseline),
            "limit_tokens": self.limit,
        }

    def score(self, answers: Sequence[str], references: Sequence[str]) -> pd.DataFrame:
        """One row per pair: precision, recall, f1, rouge_l (in [0, 1], higher is more similar), truncated.

        A pair scores 0 if either text has no content (empty, only punctuation, "[SEP]"). The library would
        return NaN or compare punctuation, and omitting the pair would reward the empty answer.
        `truncated`: the answer was longer than `limit` tokens, and BERTScore compared its beginning.
        ROUGE-L (F-measure, Porter stemmer) only uses Latin letters and digits.
        """
        pairs = enumerate(zip(answers, references, strict=True))
        scored = [i for i, texts in pairs if all(map(self._has_content, texts))]
        frame = pd.DataFrame(0.0, index=range(len(answers)), columns=[*BERTSCORE, "rouge_l"])
        for start in range(0, len(scored), PAIRS_AT_ONCE):
            rows = scored[start : start + PAIRS_AT_ONCE]
            scores = self._library.score([answers[i] for i in rows], [references[i] for i in rows])
            for metric, values in zip(BERTSCORE, scores, strict=True):
                frame.loc[rows, metric] = values.double().tolist()
        for i in scored:
            frame.loc[i, "rouge_l"] = self._rouge.score(references[i], answers[i])["rougeL"].fmeasure
        frame["truncated"] = [self.is_truncated(answer) for answer in answers]
        return frame

    def _has_content(self, text: str) -> bool:
        """Whether the text, without special tokens, has a letter or digit within the encoder's limit."""
        ids = self._tokenizer(text.strip(), truncation=True, max_length=self.limit, verbose=False).input_ids
        special = set(self._tokenizer.all_special_ids) - {self._tokenizer.unk_token_id}
        for token in self._tokenizer.all_special_tokens:
            text = text.replace(token, " ")
        return any(map(str.isalnum, text)) and not special.issuperset(ids)

    def is_truncated(self, text: str) -> bool:
        return len(self._tokenizer(text, verbose=False).input_ids) > self.limit

    def rescale(self, metric: str, value: float) -> float:
        """Rescale a raw score so that unrelated sentences score 0; requires a `baseline`."""
        return (value - self.baseline[metric]) / (1 - self.baseline[metric])
