"""Training metrics over all processes: tokens, speed, memory and FLOPs."""

import hashlib
import os
import time

from medkit.runs import machine
from medkit.train.cpu import row_lengths
from medkit.train.shape import Shape

# Dense bf16 FLOP/s and bytes/s from the vendors' data sheets. The first name that a device's name contains is
# used.
DATA_SHEETS = {
    "H100 NVL": (835e12, 3.9e12),
    "H100 PCIe": (756e12, 2.0e12),
    "H100": (989e12, 3.35e12),
    "H200": (989e12, 4.8e12),
    "A100": (312e12, 1.9e12),
}

COUNTED = ("tokens", "positions", "padded", "samples")
DIGITS = {"tokens_per_s": 1, "samples_per_s": 3, "mfu": 4, "padding_share": 4}  # decimals in loss.csv


def flops_per_token(model) -> float:
    """Floating-point operations per trained token (see Shape.flops_per_token)."""
    lora = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Shape.of(model.config).flops_per_token(lora)


class Meter:
    """Counts the tokens and samples of each optimizer step over all processes, and its wall time without
    evaluation. `total` is saved in checkpoints, so that a resumed run continues the count."""

    def __init__(self, model):
        self.flops = flops_per_token(model)
        self.total: dict[str, float] = dict.fromkeys((*COUNTED, "seconds"), 0)
        self.begin_step()

    def begin_step(self) -> None:
        self.started, self.step = time.perf_counter(), [0] * 5  # COUNTED and the batches' digest

    def count(self, batch: dict) -> dict:
        """Count a padded or padding-free batch and return it without `samples`, which the model does not take
        (see batches.collate_with_marks)."""
        packed_samples = batch.pop("samples", None)
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        if mask is not None:
            lengths = mask.sum(dim=1).tolist()
        elif (packed := batch.get("packed_seq_lengths")) is not None:
            lengths = packed.tolist()
        else:
            lengths = row_lengths(batch["position_ids"])
        digest = int.from_bytes(hashlib.sha256(ids.cpu().numpy().tobytes()).digest()[:6])
        samples = len(lengths) if packed_samples is None else int(packed_samples)
        counts = (sum(lengths), ids.numel(), len(lengths) * max(lengths), samples, digest)
        self.step = [total + count for total, count in zip(self.step, counts, strict=True)]
        return batch

    def end_step(self) -> dict:
        """The columns of loss.csv that describe the finished step."""
        *counts, digest = _sum_over_processes(self.step)
        step = {**dict(zip(COUNTED, counts, strict=True)), "seconds": time.perf_counter() - self.started}
        self.total = {name: value + step[name] for name, value in self.total.items()}
        rates = {
            name: value if value is None else round(value, DIGITS[name])
            for name, value in self._rates(step).items()
        }
        return {
            "tokens": self.total["tokens"],
            **rates,
            "peak_memory_gb": peak_memory_gb(),
            # A sum does not depend on how the processes share the batches.
            "batch": f"{digest % 2**48:012x}",
        }

    def totals(self) -> dict:
        tokens, padded = self.total["tokens"], self.total["padded"]
        return {
            "tokens": tokens,
            "samples": self.total["samples"],
            **self._rates(self.total),
            "padding_share_padded": 1 - tokens / max(padded, 1),
            "peak_memory_gb": peak_memory_gb(),
        }

    def _rates(self, counts: dict) -> dict[str, float | None]:
        """mfu: model FLOP/s utilization, the share of the GPUs' peak; None if the peak is unknown."""
        import torch

        seconds = max(counts["seconds"], 1e-9)
        speed = counts["tokens"] / seconds
        peak = data_sheet(torch.cuda.get_device_name())[0] if torch.cuda.is_available() else 0.0
        return {
            "tokens_per_s": speed,
            "samples_per_s": counts["samples"] / seconds,
            "padding_share": 1 - counts["tokens"] / max(counts["positions"], 1),
            "mfu": speed * self.flops / peak / processes() if peak else None,
        }


def processes() -> int:
    """The number of training processes that torchrun or accelerate started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any training process."""
    return bool(_sum_over_processes([int(flag)])[0])


def _sum_over_processes(counts: list[int]) -> list[int]:
    import torch

    if processes() == 1:
        return counts
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(counts, dtype=torch.int64, device=device)
    torch.distributed.all_reduce(total)
    return total.tolist()


def peak_memory_gb() -> float:
    """The GPU's peak memory, or this process's without one, in 10^9 bytes."""
    peak = machine.peak_memory()
    return peak.get("peak_gpu_memory_gb", peak["peak_memory_gb"])


def data_sheet(device: str) -> tuple[float, float]:
    """(FLOP/s, bytes/s) of a GPU; zeros if unknown."""
    return next((speeds for name, speeds in DATA_SHEETS.items() if name in device), (0.0, 0.0))
