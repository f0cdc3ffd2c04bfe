"""Checks of a stage's training rows, token by token, and of a loaded model."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from medkit import prompts, recipes
from medkit.preflight.findings import Check
from medkit.records import LETTERS, Dialogue, MCQItem
from medkit.train import cpu

SAMPLE = 256  # rows checked token by token
# Largest relative difference between losses or log-probabilities that should be equal. bfloat16 has 8 bits.
TOLERANCE, TOLERANCE_FLOAT32 = 0.02, 1e-3


def rows(recipe: recipes.Recipe, tokenizer, records: Sequence[MCQItem | Dialogue], prepared) -> list[Check]:
    """Check a stage's training rows.

    prepared: the rows of tokenization.prepare; records: their records, in the same order. Lengths and labels
    are counted over all rows, tokens in a random sample.
    """
    stage = "stage2" if any(isinstance(record, Dialogue) for record in records) else "stage1"
    loss_on = getattr(recipe, stage).loss_on
    rng = np.random.default_rng(recipe.data.seed)
    positions = np.sort(rng.choice(len(records), min(SAMPLE, len(records)), replace=False))
    sample = prepared.select(positions)
    ids, labels = sample["input_ids"][:], sample["labels"][:]
    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    end_ids = tokenizer.convert_tokens_to_ids(chat.ends)
    exams = [
        (record, row, row_labels, prompts.prompt_ids(tokenizer, chat, record))
        for record, row, row_labels in zip([records[i] for i in positions], ids, labels, strict=True)
        if isinstance(record, MCQItem)
    ]
    checks = [
        _one_bos(tokenizer, chat, ids),
        _end_of_turn(chat, end_ids, ids, labels, sample["cut"]),
        _pad(tokenizer, end_ids),
        _supervised(prepared, ids, labels, loss_on),
        _cut(prepared, recipe.model.max_length),
        _same_prompt(exams, loss_on),
        _letters(tokenizer, exams, recipe.data.mcq_target),
    ]
    return [dataclasses.replace(check, name=f"{stage}: {check.name}") for check in checks]


def _result(name: str, problem: str, fix: str, message: str) -> Check:
    """A failed check if there is a problem, else a passed one with `message`."""
    return Check(name, "fail", problem, fix) if problem else Check(name, "pass", message)


def _one_bos(tokenizer, chat, ids) -> Check:
    name, bos, text = "one BOS", tokenizer.bos_token_id, tokenizer.bos_token
    if bos is None:
        return Check(name, "pass", "the tokenizer has no BOS")
    in_turns = chat.example.removeprefix(text).count(text)  # some templates also write it in each turn
    doubled = sum(row[:2] == [bos, bos] or (not in_turns and row.count(bos) > 1) for row in ids)
    missing = sum(row[0] != bos for row in ids)
    if missing == len(ids) and not doubled and tokenizer.encode("x")[0] != bos:  # e.g. Phi-3
        fix = "check that the model was trained without it"
        return Check(name, "warn", f"neither template nor tokenizer writes {text}", fix)
    problem = f"of {len(ids)} rows {doubled} have more than one {text}, {missing} begin without"
    fix = "let either the template or the tokenizer write it, not both"
    return _result(name, problem if doubled or missing else "", fix, f"{len(ids)} rows begin with one {text}")


def _end_of_turn(chat, end_ids, ids, labels, cut) -> Check:
    """The end of the last answer must be supervised. Rows that were cut may have lost it."""
    end, complete, unsupervised = " or ".join(chat.ends), 0, 0
    for row, row_labels, tokens_cut in zip(ids, labels, cut, strict=True):
        if tokens_cut:
            continue
        complete += 1
        last = max((i for i, token in enumerate(row) if token in end_ids), default=None)
        unsupervised += last is None or row_labels[last] == prompts.IGNORED
    return _result(
        "end of turn supervised",
        f"of {complete} rows {unsupervised} do not learn {end}" if unsupervised else "",
        "supervise the answer including its end-of-turn token, or the model never stops",
        f"{end} in each of {complete} rows",
    )


def _pad(tokenizer, end_ids) -> Check:
    pad = tokenizer.pad_token_id
    problem = "no pad" if pad is None else ""
    if pad in (*end_ids, tokenizer.eos_token_id):
        problem = problem or f"pad is {tokenizer.pad_token}, the end token too"
    fix = "set another pad_token in its tokenizer_config.json, or the end of a turn is masked as padding"
    return _result("pad token", problem, fix, f"{tokenizer.pad_token}, not the end of a turn")


def _supervised(prepared, ids, labels, loss_on) -> Check:
    def fail(message: str, fix: str) -> Check:
        return Check("supervised tokens", "fail", message, fix)

    lengths, supervised = np.array(prepared["length"]), np.array(prepared["supervised"])
    mismatched = sum(
        any(label not in (token, prompts.IGNORED) for token, label in zip(row, row_labels, strict=True))
        for row, row_labels in zip(ids, labels, strict=True)
    )
    counts = [sum(label != prompts.IGNORED for label in row_labels) for row_labels in labels]
    unsupervised = counts.count(0)
    share = sum(counts) / max(1, sum(map(len, ids)))
    message = f"{share:.2%} of the sample's tokens, {supervised.sum():,} of {lengths.sum():,} in all"
    if mismatched:
        return fail(f"{mismatched} rows have labels that differ from their tokens", "prepare the rows again")
    if unsupervised == len(labels):
        fix = "the answers are masked and nothing would be learned; check template and loss_on"
        return fail("every label is -100", fix)
    if loss_on == "answer" and share > 0.9:
        return fail(f"{message}, with the loss on answers", "the prompts are not masked")
    if loss_on == "text" and share < 1:
        return fail(f"{message}, with the loss on the text", "prepare the rows again")
    if empty := max(int((supervised == 0).sum()), unsupervised):
        fix = "raise model.max_length: their answers were cut off"
        return Check("supervised tokens", "warn", f"{message}; {empty} rows have none", fix)
    return Check("supervised tokens", "pass", message)


def _cut(prepared, max_length) -> Check:
    cut = np.array(prepared["cut"])
    rows_cut, longest = int((cut > 0).sum()), int((np.array(prepared["length"]) + cut).max())
    if not rows_cut:
        return Check("rows cut", "pass", f"none; the longest has {longest} of {max_length} tokens")
    message = f"{rows_cut} of {len(cut)} rows lose {cut.sum():,} tokens at {max_length}"
    message += f"; the longest has {longest}"
    status = "fail" if rows_cut > 0.1 * len(cut) else "warn"
    return Check("rows cut", status, message, f"--set model.max_length={longest}")


def _same_prompt(exams, loss_on) -> Check:
    """Training and evaluation must have the same prompt, token for token."""
    different = []
    for record, row, row_labels, prompt in exams:
        prompt = prompt[: len(row)]  # the row may have been cut
        first = next((i for i, label in enumerate(row_labels) if label != prompts.IGNORED), len(row))
        if row[: len(prompt)] != prompt or (loss_on == "answer" and first != len(prompt)):
            different.append(f"{record.source}/{record.id}")
    return _result(
        "same prompt in training and evaluation",
        f"{len(different)} of {len(exams)} questions differ, first {different[0]}" if different else "",
        "render both with the same tokenizer and chat template",
        f"{len(exams)} questions" if exams else "no question in the sample",
    )


def _letters(tokenizer, exams, target) -> Check:
    """The answer's letter must be trained as the token, and at the position, that evaluation scores."""
    try:
        position = prompts.letter_position(tokenizer, target)
    except prompts.PromptError as error:
        return Check("letters", "fail", *error.problem_and_fix())
    wrong = []
    for record, row, _, prompt in exams:
        scored = [*position["encode"](record), position["letter_tokens"][LETTERS.index(record.answer)]]
        # `_same_prompt` reports another prompt. A row that was cut may end before its letter.
        if row[: len(prompt)] == prompt and row[: len(scored)] != scored[: len(row)]:
            wrong.append(f"{record.source}/{record.id}")
    return _result(
        "letters",
        f"{len(wrong)} of {len(exams)} answers are other tokens, first {wrong[0]}" if wrong else "",
        "prepare the rows with the data.mcq_target that is scored",
        f"one token each, {' '.join(map(str, position['letter_tokens']))}",
    )


def model(net, tokenizer, prepared, count: int = 4) -> list[Check]:
    """Check on `count` short rows that packed rows do not see each other, and that padding changes nothing.

    net: a causal language model of Transformers. On a CPU rows are packed as in training (cpu.split_passes).
    """
    import torch

    weight = net.get_input_embeddings().weight
    tolerance = TOLERANCE_FLOAT32 if weight.dtype == torch.float32 else TOLERANCE
    positions = np.argsort(np.array(prepared["length"]), kind="stable")[: 8 * count : 8]  # different lengths
    ids, labels = (
        [torch.tensor(prepared[int(i)][name]) for i in positions] for name in ("input_ids", "labels")
    )
    was_training, device = net.training, weight.device
    net.eval()
    try:
        with torch.no_grad():
            single = [_log_probs(net, ids=row[None].to(device))[0] for row in ids]
            packed = _packed(net, ids, labels, device)
            padded = _padded(net, ids, device)
    finally:
        net.train(was_training)
    top = [log_probs[-1].topk(8).indices for log_probs in single]
    single_last, padded_last = (
        np.array([log_probs[-1][tokens].tolist() for log_probs, tokens in zip(rows, top, strict=True)])
        for rows in (single, padded)
    )
    # Tokens that the packed rows share are computed in the first row only.
    counts = [len(log_probs) for log_probs in packed]
    own_ids, own_single = ([row[-n:] for row, n in zip(rows, counts, strict=True)] for rows in (ids, single))
    single_losses, packed_losses = (_losses(log_probs, own_ids) for log_probs in (own_single, packed))
    isolation_fix = "set packing=off: rows see each other"
    padding_fix = "score with mcq.max_batch_tokens=1: padding is seen"
    return [
        _equal("packed rows isolated", single_losses, packed_losses, tolerance, isolation_fix),
        _equal("logits in a batch", single_last, padded_last, tolerance, padding_fix),
    ]


def _log_probs(net, ids, **inputs):
    return net(input_ids=ids, use_cache=False, **inputs).logits.float().log_softmax(-1).cpu()


def _packed(net, ids, labels, device):
    """Log-probabilities with all rows packed into one, each with positions from 0, as in training."""
    import torch

    positions = torch.cat([torch.arange(len(row)) for row in ids])[None]
    batch = {"input_ids": torch.cat(ids)[None], "labels": torch.cat(labels)[None], "position_ids": positions}
    with cpu.training(net) as engine:
        (batch,) = engine.passes(batch)
        input_ids, positions = (batch[name].to(device) for name in ("input_ids", "position_ids"))
        log_probs = _log_probs(net, input_ids, position_ids=positions)[0]
    return log_probs.split(cpu.row_lengths(batch["position_ids"]))


def _padded(net, ids, device):
    """Log-probabilities with all rows in one batch, padded on the left as in scoring and generation."""
    import torch

    longest = max(len(row) for row in ids)
    input_ids = torch.zeros((len(ids), longest), dtype=torch.long)  # any token will do: it is masked
    mask = torch.zeros_like(input_ids)
    for i, row in enumerate(ids):
        input_ids[i, -len(row) :], mask[i, -len(row) :] = row, 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = {"attention_mask": mask.to(device), "position_ids": positions.to(device)}
    log_probs = _log_probs(net, input_ids.to(device), **inputs)
    return [row_log_probs[-len(row) :] for row_log_probs, row in zip(log_probs, ids, strict=True)]


def _losses(log_probs, ids) -> np.ndarray:
    """Mean loss of each row over its tokens; 0 for a row of one token."""
    return np.array(
        [
            -p[:-1].gather(1, row[1:, None]).sum().item() / max(1, len(row) - 1)
            for p, row in zip(log_probs, ids, strict=True)
        ]
    )


def _equal(name: str, expected: np.ndarray, actual: np.ndarray, tolerance: float, fix: str) -> Check:
    worst = float(np.max(np.abs(expected - actual) / np.maximum(1, np.abs(expected))))
    message = f"largest relative difference {worst:.1e}, tolerance {tolerance}, {len(expected)} rows"
    return Check(name, "pass", message) if worst <= tolerance else Check(name, "fail", message, fix)
