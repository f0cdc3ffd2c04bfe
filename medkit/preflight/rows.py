"""Checks of the rows a stage will train on, token by token, and of a loaded model."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from medkit import prompts, recipes
from medkit.preflight.findings import Check
from medkit.records import LETTERS, Dialogue, MCQItem
from medkit.train import cpu

SAMPLE = 256  # rows looked at token by token
# Relative difference of losses or log-probabilities that should be equal; bfloat16 keeps 8 bits of a number.
TOLERANCE, TOLERANCE_FLOAT32 = 0.02, 1e-3


def rows(recipe: recipes.Recipe, tokenizer, records: Sequence[MCQItem | Dialogue], prepared) -> list[Check]:
    """Checks of a stage's training rows. records: in the order of `prepared` (tokenization.prepare).

    Lengths and labels are counted over all rows, tokens in a sample drawn by the recipe's seed.
    """
    stage = "stage2" if any(isinstance(record, Dialogue) for record in records) else "stage1"
    loss_on = getattr(recipe, stage).loss_on
    rng = np.random.default_rng(recipe.data.seed)
    chosen = np.sort(rng.choice(len(records), min(SAMPLE, len(records)), replace=False))
    sample = prepared.select(chosen)
    ids, labels = sample["input_ids"][:], sample["labels"][:]
    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    ends = tokenizer.convert_tokens_to_ids(chat.ends)
    exams = [
        (record, row, label, prompts.prompt_ids(tokenizer, chat, record))
        for record, row, label in zip([records[i] for i in chosen], ids, labels, strict=True)
        if isinstance(record, MCQItem)
    ]
    checks = [
        _one_bos(tokenizer, chat, ids),
        _end_of_turn(chat, ends, ids, labels, sample["cut"]),
        _pad(tokenizer, ends),
        _supervised(prepared, ids, labels, loss_on),
        _cut(prepared, recipe.model.max_length),
        _same_prompt(exams, loss_on),
        _letters(tokenizer, exams, recipe.data.mcq_target),
    ]
    return [dataclasses.replace(c, name=f"{stage}: {c.name}") for c in checks]


def _judged(name: str, wrong: str, fix: str, right: str) -> Check:
    """A failure where `wrong` says what it is."""
    return Check(name, "fail", wrong, fix) if wrong else Check(name, "pass", right)


def _one_bos(tokenizer, chat, ids) -> Check:
    name, bos, text = "one BOS", tokenizer.bos_token_id, tokenizer.bos_token
    if bos is None:
        return Check(name, "pass", "the tokenizer has no BOS")
    turns = chat.example.removeprefix(text).count(text)  # that it opens, or ends
    doubled = sum(row[:2] == [bos, bos] or (not turns and row.count(bos) > 1) for row in ids)
    lacking = sum(row[0] != bos for row in ids)
    if lacking == len(ids) and not doubled and tokenizer.encode("x")[0] != bos:  # as Phi-3's template has it
        fix = "see that the model was trained without it"
        return Check(name, "warn", f"neither template nor tokenizer writes {text}", fix)
    wrong = f"of {len(ids)} rows {doubled} have more than one {text}, {lacking} begin without"
    fix = "let either the template or the tokenizer write it, not both"
    return _judged(name, wrong if doubled or lacking else "", fix, f"{len(ids)} rows begin with one {text}")


def _end_of_turn(chat, ends, ids, labels, cut) -> Check:
    """The last answer's end must be learned; a row that was cut may have lost it."""
    end, whole, wrong = " or ".join(chat.ends), 0, 0
    for row, label, lost in zip(ids, labels, cut, strict=True):
        if not lost:
            last = max((i for i, token in enumerate(row) if token in ends), default=None)
            whole, wrong = whole + 1, wrong + (last is None or label[last] == prompts.IGNORED)
    return _judged(
        "end of turn supervised",
        f"of {whole} rows {wrong} do not learn {end}" if wrong else "",
        "supervise the answer up to and with the end-of-turn token, or the model never stops",
        f"{end} in each of {whole} rows",
    )


def _pad(tokenizer, ends) -> Check:
    pad = tokenizer.pad_token_id
    wrong = "no pad" if pad is None else ""
    if pad in (*ends, tokenizer.eos_token_id):
        wrong = wrong or f"pad is {tokenizer.pad_token}, the end token too"
    fix = "set another pad_token in its tokenizer_config.json, or the end of a turn is masked as padding"
    return _judged("pad token", wrong, fix, f"{tokenizer.pad_token}, not the end of a turn")


def _supervised(prepared, ids, labels, loss_on) -> Check:
    name = "supervised tokens"
    length, counted = np.array(prepared["length"]), np.array(prepared["supervised"])
    strange = sum(
        any(b not in (a, prompts.IGNORED) for a, b in zip(i, x, strict=True))
        for i, x in zip(ids, labels, strict=True)
    )
    silent = sum(all(label == prompts.IGNORED for label in row) for row in labels)
    share = sum(label != prompts.IGNORED for row in labels for label in row) / max(1, sum(map(len, ids)))
    message = f"{share:.2%} of the sample's tokens, {counted.sum():,} of {length.sum():,} in all"
    if strange:
        return Check(
            name, "fail", f"{strange} rows' labels are other tokens than theirs", "prepare them anew"
        )
    if silent == len(labels):
        fix = "the answer's mask is wrong: nothing would be learned; check template and loss_on"
        return Check(name, "fail", "every label is -100", fix)
    if loss_on == "answer" and share > 0.9:
        return Check(name, "fail", f"{message}, with the loss on answers", "the prompts are not masked")
    if loss_on == "text" and share < 1:
        return Check(name, "fail", f"{message}, with the loss on the text", "prepare the rows anew")
    if empty := max(int((counted == 0).sum()), silent):
        fix = "raise model.max_length: their answers were cut off"
        return Check(name, "warn", f"{message}; {empty} rows have none", fix)
    return Check(name, "pass", message)


def _cut(prepared, max_length) -> Check:
    cut = np.array(prepared["cut"])
    rows_cut, longest = int((cut > 0).sum()), int((np.array(prepared["length"]) + cut).max())
    if not rows_cut:
        return Check("rows cut", "pass", f"none; the longest has {longest} of {max_length} tokens")
    message = f"{rows_cut} of {len(cut)} rows lose {cut.sum():,} tokens at {max_length}"
    status = "fail" if rows_cut > 0.1 * len(cut) else "warn"
    return Check(
        "rows cut", status, f"{message}; the longest has {longest}", f"--set model.max_length={longest}"
    )


def _same_prompt(exams, loss_on) -> Check:
    """Token for token, what is scored must be what was trained on, up to the answer."""
    wrong = []
    for record, row, label, prompt in exams:
        asked = prompt[: len(row)]
        first = next((i for i, x in enumerate(label) if x != prompts.IGNORED), len(row))
        if row[: len(asked)] != asked or (loss_on == "answer" and first != len(asked)):
            wrong.append(f"{record.source}/{record.id}")
    return _judged(
        "same prompt in training and evaluation",
        f"{len(wrong)} of {len(exams)} questions differ, first {wrong[0]}" if wrong else "",
        "render both with the same tokenizer and chat template",
        f"{len(exams)} questions" if exams else "no question in the sample",
    )


def _letters(tokenizer, exams, target) -> Check:
    """The letter is to be learned as the token that is scored, at the place where it is scored."""
    try:
        place = prompts.letter_position(tokenizer, target)
    except prompts.PromptError as error:
        return Check("letters", "fail", *error.problem_and_fix())
    wrong = []
    for record, row, _, prompt in exams:
        wanted = [*place["encode"](record), place["letter_tokens"][LETTERS.index(record.answer)]]
        # Another prompt is reported above; a row that was cut may end before its letter.
        if row[: len(prompt)] == prompt and row[: len(wanted)] != wanted[: len(row)]:
            wrong.append(f"{record.source}/{record.id}")
    return _judged(
        "letters",
        f"{len(wrong)} of {len(exams)} answers are other tokens, first {wrong[0]}" if wrong else "",
        "prepare the rows with the data.mcq_target that is scored",
        f"one token each, {' '.join(map(str, place['letter_tokens']))}",
    )


def model(net, tokenizer, prepared, count: int = 4) -> list[Check]:
    """Isolation of packed rows, and logits that do not depend on the batch, on `count` short rows.

    net: a causal language model of Transformers. On a CPU rows are packed as in training (cpu.split_passes).
    """
    import torch

    weight = net.get_input_embeddings().weight
    tolerance = TOLERANCE_FLOAT32 if weight.dtype == torch.float32 else TOLERANCE
    order = np.argsort(np.array(prepared["length"]), kind="stable")[: 8 * count : 8]  # of unlike length
    chosen, labels = (
        [torch.tensor(prepared[int(i)][name]) for i in order] for name in ("input_ids", "labels")
    )
    was_training, device = net.training, weight.device
    net.eval()
    try:
        with torch.no_grad():
            alone = [_log_probs(net, ids=row[None].to(device))[0] for row in chosen]
            packed = _packed(net, chosen, labels, device)
            batch = _padded(net, chosen, device)
    finally:
        net.train(was_training)
    likely = [p[-1].topk(8).indices for p in alone]
    ends = [np.array([p[-1][top].tolist() for p, top in zip(x, likely, strict=True)]) for x in (alone, batch)]
    computed = [len(p) for p in packed]  # tokens; shared ones are in the first row only
    own, apart = ([x[-n:] for x, n in zip(rows, computed, strict=True)] for rows in (chosen, alone))
    losses = [_losses(x, own) for x in (apart, packed)]
    return [
        _equal("packed rows isolated", losses, tolerance, "set packing=off: samples see one another"),
        _equal("logits in a batch", ends, tolerance, "score with mcq.max_batch_tokens=1: padding is seen"),
    ]


def _log_probs(net, ids, **more):
    return net(input_ids=ids, use_cache=False, **more).logits.float().log_softmax(-1).cpu()


def _packed(net, chosen, labels, device):
    """All rows in one, each with positions from 0, as in training."""
    import torch

    places = torch.cat([torch.arange(len(row)) for row in chosen])[None]
    batch = {"input_ids": torch.cat(chosen)[None], "labels": torch.cat(labels)[None], "position_ids": places}
    with cpu.training(net) as engine:
        (batch,) = engine.passes(batch)
        ids, places = (batch[name].to(device) for name in ("input_ids", "position_ids"))
        out = _log_probs(net, ids, position_ids=places)[0]
    return out.split(cpu.row_lengths(batch["position_ids"]))


def _padded(net, chosen, device):
    """All rows in one batch, padded on the left as for scoring and generation."""
    import torch

    longest = max(len(row) for row in chosen)
    ids = torch.zeros((len(chosen), longest), dtype=torch.long)  # any token: it is masked
    mask = torch.zeros_like(ids)
    for i, row in enumerate(chosen):
        ids[i, -len(row) :], mask[i, -len(row) :] = row, 1
    places = (mask.cumsum(1) - 1).clamp(min=0)
    out = _log_probs(net, ids.to(device), attention_mask=mask.to(device), position_ids=places.to(device))
    return [one[-len(row) :] for one, row in zip(out, chosen, strict=True)]


def _losses(log_probs, ids) -> np.ndarray:
    """Each row's mean loss over its tokens; 0 where it has only one."""
    pairs = zip(log_probs, ids, strict=True)
    sums = [(-p[:-1].gather(1, row[1:, None]).sum().item(), len(row) - 1) for p, row in pairs]
    return np.array([total / max(1, count) for total, count in sums])


def _equal(name, pair, tolerance: float, fix: str) -> Check:
    one, other = pair
    worst = float(np.max(np.abs(one - other) / np.maximum(1, np.abs(one))))
    message = f"largest relative difference {worst:.1e}, tolerance {tolerance}, {len(one)} rows"
    return Check(name, "pass", message) if worst <= tolerance else Check(name, "fail", message, fix)
