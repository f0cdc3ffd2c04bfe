"""What notebooks 03 and 04 are said to take, with the arithmetic."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from medkit import pubmedqa, recipes
from medkit.evaluate import generation, mcq
from medkit.preflight import estimate, evaluation_costs
from medkit.preflight.evaluation_costs import Pass
from medkit.records import ConsumerQuery, MCQItem
from medkit.train import metrics

LAPTOP = {"system": "", "processor": "", "cores": 2, "memory_gb": 16.0, "gpus": []}
H100 = {**LAPTOP, "gpus": [{"name": "NVIDIA H100 80GB HBM3", "memory_gb": 79.6, "driver": "580.1"}]}
COUNTS = {"medqa": 1273, "medmcqa": 4183, "pubmedqa": 1000}
LENGTHS = {"medqa": [300, 320], "medmcqa": [160], "pubmedqa": [440, 500]}  # means 310, 160, 470


def test_every_question_as_released():
    recipe = recipes.get("as_released")
    letters, words, released = evaluation_costs.exam_passes(recipe, COUNTS, LENGTHS, 60)
    # 1,273 + 4,183 + 1,000 = 6,456 questions of base, Med-Mix, Med-Nirvana and the control
    assert (letters.models, letters.prompts, letters.generated) == (4, 6456, 0)
    # 1,273 x (310 - 60) + 4,183 x (160 - 60) + 1,000 x (470 - 60) = 318,250 + 418,300 + 410,000
    assert letters.prompt_tokens == 1_146_550
    assert letters.batch == 8192 // 500 == 16
    for one in (words, released):
        assert one.prompts == 6456 and one.prompt_tokens == 1_146_550 + 6456 * 60
        assert one.batch == 32  # 16 x 8,192 tokens would take 262 prompts of 500
        assert one.generated == 4 * 6456 * 128 and one.steps == 4 * 202 * 128  # 6,456 / 32 = 201.75


def test_some_questions_in_words_and_rows_cut_by_the_recipe():
    recipe = recipes.get("recommended", {"mcq.rows": "50", "mcq.prefix_cache": "false"})
    letters, words, released, *_ = evaluation_costs.exam_passes(recipe, COUNTS, LENGTHS, 60)
    assert letters.prompts == 150 and letters.prompt_tokens == 50 * (310 + 160 + 470)
    assert (words.new_tokens, released.new_tokens) == (32, 128)
    recipe = recipes.get("paper", {"mcq.generated_rows": "0"})
    assert [one.name for one in evaluation_costs.exam_passes(recipe, COUNTS, LENGTHS, 60)] == [
        "questions by letter"
    ]
    few = evaluation_costs.exam_passes(recipes.get("paper"), {"medqa": 7}, {"medqa": [9]}, 0)
    assert [one.prompts for one in few] == [7, 7, 7]


def test_other_orders_and_general_questions():
    recipe = recipes.get("recommended")
    *_, orders, general = evaluation_costs.exam_passes(recipe, COUNTS, LENGTHS, 60, [100, 140])
    # 200 of each: 3 x 200 x (310 - 60) + 3 x 200 x (160 - 60) + 2 x 200 x (470 - 60)
    assert orders.prompts == 1600 and orders.prompt_tokens == 150_000 + 60_000 + 164_000
    assert general.prompts == 2 and general.prompt_tokens == 240 - 2 * 60 and general.batch == 8192 // 140
    few = evaluation_costs.exam_passes(recipe, {"pubmedqa": 7}, {"pubmedqa": [9]}, 0)
    assert few[3].prompts == 14  # no more are there
    assert len(evaluation_costs.exam_passes(recipes.get("paper"), COUNTS, LENGTHS, 60)) == 3


def test_patients_queries():
    greedy, sampled = evaluation_costs.consumer_passes(recipes.get("recommended"), 10_000, [100, 300])
    assert (greedy.models, greedy.prompts, greedy.prompt_tokens, greedy.batch) == (2, 50, 10_000, 8)
    assert (sampled.prompts, sampled.generated) == (200, 2 * 200 * 512)
    assert greedy.steps == 2 * 7 * 512  # 50 / 8 = 6.25
    recipe = recipes.get("recommended", {"consumer.samples": "0"})
    (only,) = evaluation_costs.consumer_passes(recipe, 20, [100])
    assert only.prompts == 20  # no more undamaged queries are there


def test_hours_of_llama_8b_on_an_h100():
    recipe, shape = recipes.get("as_released"), estimate.LLAMA_8B
    speed = 0.35 * 989e12
    # a million prompt tokens of 2 x (6.979e9 + 41.9e6) FLOPs and one output layer of 2 x 0.525e9 a prompt
    letters = Pass("letters", 1, 1000, 1e6, 500, 16)
    took, basis = evaluation_costs.hours(recipe, shape, [letters], H100)
    assert took * 3600 == pytest.approx((1e6 * 14.04e9 + 1000 * 1.05e9) / speed, rel=0.01)  # 41 s
    assert basis == "assumed 35% of 989 TFLOP/s"
    # A step of 32 answers reads 5.70 GB, unpacks and reads 4 x 6.979 GB, and a cache of 131,072 bytes a
    # token: 32 x 628 x 131,072 = 2.63 GB; in all 36.2 GB at 0.35 x 3.35 TB/s = 31 ms. Its FLOPs take 1.4 ms.
    words = Pass("words", 4, 6456, 0, 500, 32, 128)
    took, _ = evaluation_costs.hours(recipe, shape, [words], H100)
    assert evaluation_costs.kv_bytes(shape, gpu=True) == 131_072
    assert took * 3600 == pytest.approx(4 * 202 * 128 * 0.0309 + 4 * 6456 * 1.05e9 / speed, rel=0.01)
    both, _ = evaluation_costs.hours(recipe, shape, [letters, words], H100)
    assert both > took
    unknown = {**LAPTOP, "gpus": [{"name": "Some GPU", "memory_gb": 8.0, "driver": "1"}]}
    assert evaluation_costs.hours(recipe, shape, [words], unknown)[0] is None
    assert "hours unknown (no data-sheet speed known" in evaluation_costs.course(
        recipe, shape, [words], unknown
    )


@pytest.mark.parametrize("device", metrics.DATA_SHEETS)
def test_every_device_with_a_speed_has_a_bandwidth(device):
    hardware = {**LAPTOP, "gpus": [{"name": f"NVIDIA {device} 80GB"}]}
    passes = [Pass("words", 1, 8, 800, 100, 8, 16)]
    assert evaluation_costs.hours(recipes.get("recommended"), estimate.LLAMA_8B, passes, hardware)[0] > 0


def test_memory_is_that_of_the_largest_pass():
    recipe, shape = recipes.get("recommended"), estimate.LLAMA_8B
    small, large = Pass("a", 1, 100, 0, 500, 8, 32), Pass("b", 1, 100, 0, 500, 32, 128)
    parts = evaluation_costs.memory(recipe, shape, [large, small], gpu=True)
    assert parts["key-value cache"] == pytest.approx(32 * 628 * 131_072 / 1e9)
    assert parts["logits"] == pytest.approx(32 * 128_256 * 4 * 4 / 1e9)
    assert parts["weights"] == pytest.approx(5.70, abs=0.01)
    # of a layer: 6 x 4,096 + 2 x 1,024 + 3 x 14,336 = 69,632 numbers of 2 bytes a token
    assert parts["activations"] == pytest.approx(32 * 500 * 69_632 * 2 / 1e9)
    assert evaluation_costs.memory(recipe, shape, [small], gpu=True)["logits"] < parts["logits"]
    one = [Pass("c", 1, 3, 0, 500, 32, 128)]  # no batch is larger than there are prompts
    assert evaluation_costs.memory(recipe, shape, one, gpu=True)["key-value cache"] < 0.3


def test_a_cpus_cache_is_in_float32():
    shape = estimate.Shape(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True)  # SmolLM2-135M's
    assert evaluation_costs.kv_bytes(shape, gpu=False) == 30 * 2 * 192 * 4
    took, basis = evaluation_costs.hours(
        recipes.get("cpu"), shape, [Pass("words", 1, 32, 0, 100, 32, 8)], LAPTOP
    )
    assert 0 < took < 0.01 and "67 GFLOP/s a core" in basis


def test_the_released_protocol_is_counted_as_it_is_asked(tiny_llama, monkeypatch):
    """The estimate's prompts, batches and new tokens are those that are generated."""
    model, tokenizer = tiny_llama
    recipe = recipes.get("cpu", {"mcq.generated_rows": "2", "mcq.max_new_tokens": "3", "mcq.general": "true"})
    items = {
        name: [
            MCQItem(str(i), name, f"Is {i} odd?" + " Why?" * i, pubmedqa.OPTIONS, "A", "Abstract.")
            for i in range(4)
        ]
        for name in COUNTS
    }
    queries = {name: [ConsumerQuery("1", name, "It hurts.", "Rest.")] for name in evaluation_costs.QUERIES}
    loaded = {(name, "eval"): records for name, records in (items | queries).items()}
    letters, words, released, orders, general = evaluation_costs.notebook_passes(
        recipe, tokenizer, loaded, True
    )["03_mcq_eval"]
    # four questions of each benchmark in 3, 3 and 2 further orders; each as long as in its own
    assert orders.prompts == 4 * (3 + 3 + 2) and general.prompts == 128
    assert orders.prompt_tokens / orders.prompts == pytest.approx(letters.prompt_tokens / 12, rel=0.01)
    seen = []

    def watched(model, tokenizer, ids, *, max_new_tokens, batch_size, **settings):
        seen.append((len(ids), batch_size, max_new_tokens, sum(map(len, ids))))
        return [[generation.Answer("A", "cut", 1)] for _ in ids]

    monkeypatch.setattr(mcq.generation, "generate_answers", watched)
    run = SimpleNamespace(recipe=recipe, folder=Path("unused"))
    active = SimpleNamespace(name="base", model=model, tokenizer=tokenizer, identity="x")
    mcq.answer_in_words(run, active, [one for of in items.values() for one in of])
    assert [row[:3] for row in seen] == [
        (one.prompts, one.batch, one.new_tokens) for one in (words, released)
    ]
    # prompts of a benchmark are taken at the mean length of all four, where the first two are asked
    assert seen[0][3] == pytest.approx(words.prompt_tokens, rel=0.05)
    assert letters.prompts == 12
