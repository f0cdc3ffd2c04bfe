"""Letter scoring on a tiny random Llama: against one plain pass a question, and where it must refuse."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medkit import MedkitError, prompts
from medkit.evaluate import letter_scoring
from medkit.records import MCQItem


def letter_tokens(tokenizer):
    return prompts.letter_position(tokenizer, "letter")["letter_tokens"]


def item(number: int, options: int = 4, filler: int = 0) -> MCQItem:
    texts = tuple(f"choice {number}{letter}" for letter in "pqrs"[:options])
    context = "An abstract. " if options == 3 else ""
    return MCQItem(str(number), "medqa", f"Question {number}?" + " why" * filler, texts, "B", context)


# lengths from one filler word to 30, in no order; every fourth with three options, as PubMedQA's
ITEMS = [item(i, 3 if i % 4 == 0 else 4, filler=(7 * i) % 31) for i in range(14)]


@pytest.fixture(autouse=True)
def one_thread():
    """A model this small is slowed down by a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(tiny_llama):
    """A copy to break."""
    model, tokenizer = tiny_llama
    return copy.deepcopy(model), copy.deepcopy(tokenizer)


def plain(model, tokenizer, items):
    """The letters' log-probabilities from one unpadded pass a question, as anyone would write it."""
    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    found = []
    for each in items:
        ids = torch.tensor([prompts.prompt_ids(tokenizer, chat, each)])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1].float()
        letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in each.letters]
        found.append(torch.log_softmax(logits[letters], 0).tolist())
    return found


def best(logprobs):
    return "ABCD"[max(range(len(logprobs)), key=logprobs.__getitem__)]


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("max_batch_tokens", [1, 700, 10**6], ids=["alone", "some", "all"])
def test_equals_one_plain_pass_a_question(tiny_llama, prefix_cache, max_batch_tokens):
    model, tokenizer = tiny_llama
    expected = plain(model, tokenizer, ITEMS)
    scored = letter_scoring.score(
        model, tokenizer, ITEMS, prefix_cache=prefix_cache, max_batch_tokens=max_batch_tokens, progress=False
    )
    for outcome, logprobs in zip(scored.outcomes, expected, strict=True):
        assert outcome.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert outcome.predicted == best(logprobs)
        assert sum(math.exp(value) for value in outcome.logprobs) == pytest.approx(1)
    assert [len(outcome.logprobs) for outcome in scored.outcomes[:3]] == [3, 4, 4]
    assert len({outcome.predicted for outcome in scored.outcomes}) > 1  # else the above shows little
    assert (scored.report["prefix_tokens"] > 100) == prefix_cache  # system turn: the instruction, in bytes
    assert scored.report["prefix_note"] == ""


def test_the_prefix_is_what_all_prompts_begin_with(tiny_llama):
    model, tokenizer = tiny_llama
    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    ids = [prompts.prompt_ids(tokenizer, chat, each) for each in ITEMS[1:3]]
    shared = next(i for i in range(10_000) if ids[0][i] != ids[1][i])  # "Question 1" against "Question 2"
    scored = letter_scoring.score(model, tokenizer, ITEMS[1:3], progress=False)
    assert scored.report["prefix_tokens"] == shared


def test_prompts_that_are_equal_or_one_within_the_other(tiny_llama):
    model, tokenizer = tiny_llama
    base = list(range(40, 60))
    sequences = {"0": base, "1": base, "2": [*base, 70, 71]}
    items = [item(i) for i in range(3)]
    given_prompts = {"encode": lambda each: sequences[each.id], "progress": False}
    scored = letter_scoring.score(model, tokenizer, items, **given_prompts)
    assert scored.report["prefix_tokens"] == 19  # 20 shared, and one has to be left
    alone = letter_scoring.score(
        model, tokenizer, items, prefix_cache=False, max_batch_tokens=1, **given_prompts
    )
    for a, b in zip(scored.outcomes, alone.outcomes, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30).map(tuple), max_size=6), st.data())
def test_shared_prefix(sequences, data):
    common = data.draw(st.lists(st.integers(0, 2), max_size=12).map(tuple))
    sequences = [common + sequence for sequence in sequences]
    start = prompts.shared_prefix(sequences)
    assert all(sequence[: len(start)] == start and len(sequence) > len(start) for sequence in sequences)
    if len(sequences) > 1 and len(common) >= prompts.MIN_SHARED_TOKENS:
        assert len(start) >= len(common)


@given(st.lists(st.integers(5, 60), max_size=30), st.integers(0, 4), st.integers(1, 200))
def test_batches_keep_order_and_budget(lengths, skip, budget):
    questions = [letter_scoring._Question(tuple(range(n)), (), "") for n in sorted(lengths, reverse=True)]
    batches = list(letter_scoring._batches(questions, skip, budget))
    assert [q for batch in batches for q in batch] == questions
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (len(batch[0].ids) - skip) <= budget


@pytest.mark.parametrize(
    ("lead", "rescored", "flips"),
    [
        (0.0, 14, 14),  # a tie, which goes to A: all 14 batched answers are B, and turned
        (2e-4, 14, 14),  # A leads by less than the batch makes
        (7e-4, 14, 0),  # B's 5e-4 is not enough, but 2e-4 between them is looked at again
        (1e-2, 0, 0),  # out of reach
    ],
)
def test_near_ties_are_decided_alone(tiny, lead, rescored, flips):
    """A stands `lead` above B and far above the rest; a batch adds 5e-4, half the tolerance, to B."""
    model, tokenizer = tiny
    a, b = letter_tokens(tokenizer)[:2]

    def lean(module, args, output):
        output.logits[..., b] = 10 + (5e-4 if output.logits.shape[0] > 1 else 0)
        output.logits[..., a] = 10 + lead

    model.register_forward_hook(lean)
    together = letter_scoring.score(model, tokenizer, ITEMS, progress=False)
    alone = letter_scoring.score(
        model, tokenizer, ITEMS, max_batch_tokens=1, prefix_cache=False, progress=False
    )
    assert {o.predicted for o in together.outcomes} == {o.predicted for o in alone.outcomes} == {"A"}
    assert (together.report["rescored"], together.report["flips"]) == (rescored, flips)
    assert together.report["ties"] == alone.report["ties"] == (14 if lead == 0 else 0)
    # what a hook does to the logits, the output layer's weights do not show
    assert alone.report["head_note"].startswith("the model's own logits differ")
    assert sum(outcome.flipped for outcome in together.outcomes) == flips
    assert (alone.report["rescored"], alone.report["flips"]) == (0, 0)
    # alone, B stands 5e-4 lower beside A than in the batch
    assert together.report["largest_move"] == pytest.approx(5e-4 if rescored else 0, abs=1e-5)
    assert alone.report["largest_move"] == 0


def test_logits_that_are_not_finite_are_counted_and_wrong(tiny):
    model, tokenizer = tiny
    odd = tokenizer.encode("%", add_special_tokens=False)[0]  # in item 3's question alone
    items = [item(i) for i in range(3)] + [MCQItem("3", "medqa", "5 % of what?", ("w", "x", "y", "z"), "B")]

    def poison(module, args, output):
        output[(args[0] == odd).any(1)] = math.nan

    model.get_input_embeddings().register_forward_hook(poison)
    scored = letter_scoring.score(model, tokenizer, items, progress=False)
    assert [bool(outcome.predicted) for outcome in scored.outcomes] == [True, True, True, False]
    assert scored.outcomes[3].logprobs == ()
    assert (scored.report["n"], scored.report["invalid"]) == (4, 1)
    row = letter_scoring.frame("base", items, scored.outcomes).iloc[3]
    assert (row["predicted"], bool(row["correct"])) == ("", False) and math.isnan(row["logprob_A"])


def test_a_letter_without_an_option_cannot_be_predicted(tiny):
    model, tokenizer = tiny
    d = letter_tokens(tokenizer)[3]

    def prefer_d(module, args, output):
        output.logits[..., d] += 100

    model.register_forward_hook(prefer_d)
    scored = letter_scoring.score(model, tokenizer, [item(0, 3), item(1, 4), item(2, 3)], progress=False)
    assert scored.outcomes[1].predicted == "D"
    assert all(
        scored.outcomes[i].predicted in "ABC" and len(scored.outcomes[i].logprobs) == 3 for i in (0, 2)
    )


def test_rows_of_the_table(tiny_llama):
    model, tokenizer = tiny_llama
    items = [item(0, 3), item(1)]
    scored = letter_scoring.score(model, tokenizer, items, progress=False)
    table = letter_scoring.frame("base", items, scored.outcomes)
    assert list(table) == (
        "model,dataset,item_id,gold,predicted,correct,logprob_A,logprob_B,logprob_C,logprob_D,group"
    ).split(",")
    assert math.isnan(table["logprob_D"][0]) and table["logprob_D"][1] == scored.outcomes[1].logprobs[3]
    assert list(table["correct"]) == [outcome.predicted == "B" for outcome in scored.outcomes]
    assert letter_scoring.frame("base", [], []).columns.tolist() == table.columns.tolist()


def test_nothing_to_score(tiny_llama):
    scored = letter_scoring.score(*tiny_llama, [], progress=False)
    assert scored.outcomes == [] and scored.report["n"] == 0


# -- other models --------------------------------------------------------------------------------


def same(model, tokenizer, reference):
    scored = letter_scoring.score(model, tokenizer, ITEMS, progress=False)
    for outcome, logprobs in zip(scored.outcomes, reference, strict=True):
        assert outcome.logprobs == pytest.approx(logprobs, abs=2e-3)
    return scored


SHAPE = {
    "vocab_size": 261, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096,
    "pad_token_id": 258, "bos_token_id": 256, "eos_token_id": 257,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("mistral", {"sliding_window": 64}),  # shorter than the prefix
        ("gemma2", {"sliding_window": 64, "final_logit_softcapping": 0.2}),  # a norm behind the MLP; capped
        ("qwen3", {}),
        ("mixtral", {"num_local_experts": 4}),
        ("gpt_neox", {}),  # attention and MLP in parallel
        ("phi", {}),
        ("gpt2", {}),  # other names, learned positions
    ],
)
def test_other_architectures(tiny_llama, kind, extra):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE | extra)).float()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # else all letters come out all but equal
    same(model.eval(), tiny_llama[1], plain(model, tiny_llama[1], ITEMS))


def test_an_adapter(tiny):
    from peft import LoraConfig, get_peft_model

    model, tokenizer = tiny
    before = plain(model, tokenizer, ITEMS)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    expected = plain(adapted.eval(), tokenizer, ITEMS)
    assert (
        max(abs(a - b) for x, y in zip(expected, before, strict=True) for a, b in zip(x, y, strict=True))
        > 0.01
    )
    adapted.train()
    assert same(adapted, tokenizer, expected).report["prefix_tokens"] > 0
    assert adapted.training  # left as it was found


def test_four_bits(tiny_llama_folder, tiny_llama):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantized = AutoModelForCausalLM.from_pretrained(
        tiny_llama_folder,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        ),
    )
    assert letter_scoring.compute_dtype(quantized) == torch.bfloat16
    scored = letter_scoring.score(quantized, tiny_llama[1], ITEMS, progress=False)
    reference = plain(quantized, tiny_llama[1], ITEMS)
    assert [outcome.predicted for outcome in scored.outcomes] == [best(logprobs) for logprobs in reference]
    assert scored.report["tolerance"] == 0.5


def test_bfloat16_batches_change_no_prediction(tiny):
    model, tokenizer = tiny
    model = model.to(torch.bfloat16)
    reference = [best(logprobs) for logprobs in plain(model, tokenizer, ITEMS)]
    for budget in (1, 900, 10**6):
        scored = letter_scoring.score(model, tokenizer, ITEMS, max_batch_tokens=budget, progress=False)
        assert [outcome.predicted for outcome in scored.outcomes] == reference
    assert scored.report["dtype"] == "bfloat16"


def test_a_model_that_takes_no_cache(tiny, monkeypatch):
    model, tokenizer = tiny
    reference, forward = plain(model, tokenizer, ITEMS), model.forward

    def refuses(*args, **kwargs):
        if kwargs.get("past_key_values") is not None:
            raise TypeError("one token at a time")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", refuses)
    report = same(model, tokenizer, reference).report
    assert (report["prefix_tokens"], report["prefix_note"]) == (
        0,
        "the model takes no shared prefix (TypeError)",
    )


def test_a_model_that_keeps_its_cache_in_tuples(tiny, monkeypatch):
    """As Unsloth's forward does on a GPU: (keys, values) a layer comes back, and any cache is made one."""
    from transformers import Cache, DynamicCache

    model, tokenizer = tiny
    plainly = letter_scoring.score(model, tokenizer, ITEMS, progress=False)
    forward, given_caches = model.forward, []

    def in_tuples(*args, past_key_values=None, **kwargs):
        if isinstance(past_key_values, Cache):
            given_caches.append(past_key_values.get_seq_length())
            past_key_values = DynamicCache([(layer.keys, layer.values) for layer in past_key_values.layers])
        output = forward(*args, past_key_values=past_key_values, **kwargs)
        if output.past_key_values is not None:
            output.past_key_values = tuple(
                (layer.keys, layer.values) for layer in output.past_key_values.layers
            )
        return output

    monkeypatch.setattr(model, "forward", in_tuples)
    scored = letter_scoring.score(model, tokenizer, ITEMS, progress=False)
    assert scored.report["prefix_tokens"] == plainly.report["prefix_tokens"] > 100
    assert scored.report["prefix_note"] == ""
    assert set(given_caches) == {scored.report["prefix_tokens"]}  # each batch goes on from the shared tokens
    assert scored.outcomes == plainly.outcomes


def test_a_model_that_ignores_the_cache(tiny, monkeypatch):
    model, tokenizer = tiny
    reference, forward = plain(model, tokenizer, ITEMS), model.forward

    def forgets(*args, past_key_values=None, **kwargs):
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", forgets)
    report = same(model, tokenizer, reference).report
    assert report["prefix_tokens"] == 0 and report["prefix_note"].startswith(
        "with the shared prefix the logits differ"
    )


def test_a_model_that_multiplies_its_output_weights_itself(tiny, monkeypatch):
    """As Unsloth's code for the GPU does at times: the output layer's hook is passed by."""
    model, tokenizer = tiny
    reference = plain(model, tokenizer, ITEMS)

    def by_hand(*args, **kwargs):
        from transformers.modeling_outputs import CausalLMOutputWithPast

        inner = model.model(*args, **kwargs)
        logits = inner.last_hidden_state @ model.lm_head.weight.T
        return CausalLMOutputWithPast(logits=logits, past_key_values=inner.past_key_values)

    monkeypatch.setattr(model, "forward", by_hand)
    report = same(model, tokenizer, reference).report
    assert report["prefix_tokens"] > 0
    assert report["head_note"] == "the model's code does not call its output layer"


def test_the_model_is_left_as_it_was(tiny):
    model, tokenizer = tiny
    letter_scoring.score(model.train(), tokenizer, ITEMS[:3], progress=False)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


# -- the letters' logits in float32 ---------------------------------------------------------------


def in_float32(model, tokenizer, items):
    """The log-probabilities where the model's own code goes on from an output layer that computes in float32:
    Transformers leaves that dtype alone, so scaling and capping are the model's own."""
    layer = model.get_output_embeddings()
    weight, bias = layer.weight.detach().float(), layer.bias
    bias = None if bias is None else bias.detach().float()

    def again(module, args, output):
        return torch.nn.functional.linear(args[0].float(), weight, bias)

    hook = layer.register_forward_hook(again)
    found = plain(model, tokenizer, items)
    hook.remove()
    return found


def near_letters(model, tokenizer, size=1.0, apart=2e-3):
    """Give the letters rows of the output layer that are all but the same."""
    rows = letter_tokens(tokenizer)
    generator = torch.Generator().manual_seed(1)
    weight = model.get_output_embeddings().weight.data
    shared = size * torch.randn(weight.shape[1], generator=generator)
    for row in rows:
        weight[row] = (shared + apart * torch.randn(weight.shape[1], generator=generator)).to(weight)


def equal(scored, reference):
    assert scored.report["head_note"] == ""
    for outcome, logprobs in zip(scored.outcomes, reference, strict=True):
        assert outcome.logprobs == pytest.approx(logprobs, abs=1e-5)
        assert outcome.predicted == best(logprobs)


ALONE = {"max_batch_tokens": 1, "prefix_cache": False, "progress": False}


def test_ties_that_only_bfloat16_makes(tiny):
    model, tokenizer = tiny
    model = model.to(torch.bfloat16)
    near_letters(model, tokenizer, size=4)
    rounded = plain(model, tokenizer, ITEMS)  # the model's own logits
    ties = sum(sorted(logprobs)[-1] == sorted(logprobs)[-2] for logprobs in rounded)
    assert ties > 3, "no tie in bfloat16 would show nothing"
    reference = in_float32(model, tokenizer, ITEMS)
    assert [best(a) for a in rounded] != [best(a) for a in reference]
    scored = letter_scoring.score(model, tokenizer, ITEMS, **ALONE)
    equal(scored, reference)
    assert scored.report["ties"] == 0 and scored.report["dtype"] == "bfloat16"


def test_a_tie_is_counted_and_goes_to_the_first(tiny):
    model, tokenizer = tiny
    near_letters(model, tokenizer, apart=0)
    scored = letter_scoring.score(model, tokenizer, ITEMS, progress=False)
    assert {outcome.predicted for outcome in scored.outcomes} == {"A"}
    assert scored.report["ties"] == len(ITEMS) == sum(outcome.tied for outcome in scored.outcomes)
    assert scored.report["flips"] == 0


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("gemma2", {"final_logit_softcapping": 0.5, "tie_word_embeddings": True}),
        ("phi", {}),  # a bias
        ("cohere", {"logit_scale": 0.0625}),
        ("granite", {"logits_scaling": 8.0}),
        ("qwen2", {"tie_word_embeddings": True}),
    ],
)
def test_what_a_model_does_to_its_logits_is_done_in_float32(tiny_llama, kind, extra):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE | extra)).float()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model = model.to(torch.bfloat16).eval()
    reference = in_float32(model, tiny_llama[1], ITEMS)
    equal(letter_scoring.score(model, tiny_llama[1], ITEMS, **ALONE), reference)
    assert reference != plain(model, tiny_llama[1], ITEMS)


def test_a_scaling_of_another_kind_leaves_the_models_own_logits(tiny):
    """`logits_scaling` divides in Granite; a model that multiplies with it must not be divided."""
    model, tokenizer = tiny
    model.config.logits_scaling = 8.0
    reference = plain(model, tokenizer, ITEMS)
    report = same(model, tokenizer, reference).report
    assert report["head_note"].startswith("the model's own logits differ from them by")


@pytest.mark.parametrize("kind", ["lora", "whole"])
def test_an_adapter_on_the_output_layer(tiny, kind):
    from peft import LoraConfig, get_peft_model

    model, tokenizer = tiny
    where = {"target_modules": ["q_proj", "lm_head"]} if kind == "lora" else {"modules_to_save": ["lm_head"]}
    config = LoraConfig(r=2, **{"target_modules": ["q_proj"]} | where, init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    switched_on = plain(adapted, tokenizer, ITEMS)
    equal(letter_scoring.score(adapted, tokenizer, ITEMS, **ALONE), switched_on)
    with adapted.disable_adapter():
        switched_off = plain(adapted, tokenizer, ITEMS)
        equal(letter_scoring.score(adapted, tokenizer, ITEMS, **ALONE), switched_off)
    assert switched_on != switched_off


def test_an_output_layer_in_four_bits(tiny):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model, tokenizer = tiny
    model = model.to(torch.bfloat16)
    weight = torch.nn.functional.pad(model.lm_head.weight.data, (0, 0, 0, 27))  # 261 rows; some CPUs want 32s
    model.lm_head = bitsandbytes.nn.Linear4bit(
        weight.shape[1], weight.shape[0], bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    )
    model.lm_head.weight = bitsandbytes.nn.Params4bit(weight, quant_type="nf4").to("cpu")
    state = model.lm_head.weight.quant_state
    unpacked = bitsandbytes.functional.dequantize_4bit(model.lm_head.weight.data, state).float()
    scored = letter_scoring.score(model, tokenizer, ITEMS, **ALONE)
    assert scored.report["head_note"] == ""
    kept = []
    hook = model.lm_head.register_forward_pre_hook(lambda module, args: kept.append(args[0][0, -1].float()))
    plain(model, tokenizer, ITEMS)
    hook.remove()
    letters = letter_tokens(tokenizer)
    for outcome, hidden, each in zip(scored.outcomes, kept, ITEMS, strict=True):
        logits = hidden @ unpacked[letters[: len(each.letters)]].T
        assert outcome.logprobs == pytest.approx(torch.log_softmax(logits, 0).tolist(), abs=1e-5)


def test_an_output_layer_that_cannot_be_read(tiny, monkeypatch):
    model, tokenizer = tiny
    reference = plain(model, tokenizer, ITEMS)

    def unknown(*args):
        raise NotImplementedError

    monkeypatch.setattr(letter_scoring.LetterHead, "of", unknown)
    report = same(model, tokenizer, reference).report
    assert report["head_note"] == "the output layer's weights cannot be read (NotImplementedError)"


# -- refusals ------------------------------------------------------------------------------------


def refused(message: str, *args, **kwargs):
    with pytest.raises(MedkitError, match=message) as error:
        letter_scoring.score(*args, progress=False, **kwargs)
    assert "\n" not in str(error.value)


def test_refusals(tiny, tmp_path):
    model, tokenizer = tiny
    refused("store without a key", model, tokenizer, ITEMS, store=tmp_path / "store.jsonl")
    refused("medqa 0: its prompt is empty", model, tokenizer, ITEMS, encode=lambda each: [])
    tokenizer.chat_template = None
    refused("no chat template", model, tokenizer, ITEMS)


# -- what the model or the tokenizer lacks ---------------------------------------------------------


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_an_item_longer_than_the_context_is_counted_and_stops_no_other(tiny, tmp_path, prefix_cache):
    model, tokenizer = tiny
    place = prompts.letter_position(tokenizer, "letter")
    options = {"prefix_cache": prefix_cache, "progress": False, "key": "k", "store": tmp_path / "store.jsonl"}
    alone = letter_scoring.score(model, tokenizer, ITEMS[1:], prefix_cache=prefix_cache, progress=False)

    def encode(each):
        return [7] * 4097 if each.id == ITEMS[0].id else place["encode"](each)  # of 4,096 positions

    for from_store in (0, len(ITEMS) - 1):
        scored = letter_scoring.score(model, tokenizer, ITEMS, encode=encode, **options)
        assert scored.outcomes[0] == letter_scoring.Outcome("", (), too_long=True)
        assert [o.predicted for o in scored.outcomes[1:]] == [o.predicted for o in alone.outcomes]
        assert scored.report["n"] == len(ITEMS)  # the denominator
        assert scored.report["too_long"] == 1 and scored.report["invalid"] == 0
        assert scored.report["from_store"] == from_store
    frame = letter_scoring.frame("base", ITEMS, scored.outcomes)
    assert frame["predicted"][0] == "" and not frame["correct"][0]


def test_all_items_longer_than_the_context(tiny):
    model, tokenizer = tiny
    scored = letter_scoring.score(model, tokenizer, ITEMS, encode=lambda _: [7] * 5000, progress=False)
    assert scored.report["too_long"] == len(ITEMS) and scored.report["items_per_s"] == 0


@pytest.mark.parametrize("pad", [None, "<|eot_id|>", "<|beyond|>"])
def test_letters_need_no_pad_token(tiny, pad):
    """Missing, an end token, or one beyond the embeddings."""
    model, tokenizer = tiny
    expected = letter_scoring.score(model, tokenizer, ITEMS, progress=False).outcomes
    tokenizer.add_tokens("<|beyond|>")
    tokenizer.pad_token = pad
    assert letter_scoring.score(model, tokenizer, ITEMS, progress=False).outcomes == expected


# -- resuming ------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def test_a_killed_evaluation_goes_on_with_the_same_result(tiny, tmp_path):
    model, tokenizer = tiny
    options = {"max_batch_tokens": 900, "key": "model-1", "progress": False}
    whole = letter_scoring.score(model, tokenizer, ITEMS, store=tmp_path / "whole.jsonl", **options)
    passes = []

    def count(module, args):
        passes.append(1)
        if len(passes) == 6:
            raise Killed

    hook = model.register_forward_pre_hook(count)
    store = tmp_path / "store.jsonl"
    with pytest.raises(Killed):
        letter_scoring.score(model, tokenizer, ITEMS, store=store, **options)
    hook.remove()
    kept = len(store.read_text().splitlines())
    assert 0 < kept < len(ITEMS)
    with store.open("a") as file:
        file.write('{"key": "cut sho')  # what a kill in the middle of a write leaves
    resumed = letter_scoring.score(model, tokenizer, ITEMS, store=store, **options)
    assert resumed.outcomes == whole.outcomes  # to the last bit
    assert resumed.report["from_store"] == kept
    again = letter_scoring.score(model, tokenizer, ITEMS, store=store, **options)
    assert again.outcomes == whole.outcomes and again.report["from_store"] == len(ITEMS)


def test_no_answer_of_one_model_is_read_for_another(tiny, tmp_path):
    model, tokenizer = tiny
    store = tmp_path / "store.jsonl"

    def found(items=ITEMS[:4], key="model-1", **options):
        return letter_scoring.score(
            model, tokenizer, items, store=store, key=key, progress=False, **options
        ).report["from_store"]

    assert (found(), found()) == (0, 4)
    assert found(key="model-2") == 0
    changed = [MCQItem("1", "medqa", "Another question?", ITEMS[1].options, "B")]
    assert found(items=changed) == 0
    assert found(encode=lambda each: list(range(30, 50 + int(each.id)))) == 0  # another prompt
    assert found(letter_tokens=letter_tokens(tokenizer)[::-1]) == 0
    tokenizer.chat_template += " "
    assert found(encode=lambda each: list(range(30, 50 + int(each.id)))) == 0  # another template
    model.to(torch.bfloat16)
    assert found(encode=lambda each: list(range(30, 50 + int(each.id)))) == 0


def test_a_spoilt_line_is_computed_again(tiny_llama, tmp_path):
    store = tmp_path / "store.jsonl"
    options = {"store": store, "key": "model-1", "progress": False}
    first = letter_scoring.score(*tiny_llama, ITEMS[:4], **options)
    lines = store.read_text().splitlines()
    store.write_text("\n".join(["[]", "not json", '{"key": 1}', *lines[1:]]) + "\n")
    second = letter_scoring.score(*tiny_llama, ITEMS[:4], **options)
    assert second.report["from_store"] == 3 and second.outcomes == first.outcomes


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 13), min_size=1, max_size=14, unique=True), st.integers(1, 3000))
def test_neighbours_change_no_prediction(tiny_llama, chosen, budget):
    model, tokenizer = tiny_llama
    everything = letter_scoring.score(model, tokenizer, ITEMS, progress=False)
    some = letter_scoring.score(
        model, tokenizer, [ITEMS[i] for i in chosen], max_batch_tokens=budget, progress=False
    )
    for i, outcome in zip(chosen, some.outcomes, strict=True):
        assert outcome.predicted == everything.outcomes[i].predicted
        assert outcome.logprobs == pytest.approx(everything.outcomes[i].logprobs, abs=1e-4)


def test_near_ties_behind_the_shared_prefix_are_decided_without_it(tiny):
    """B leads by 3e-4 with the prefix's cache, A by 2e-4 without; every question has a batch of its own."""
    model, tokenizer = tiny
    a, b = letter_tokens(tokenizer)[:2]

    def lean(module, args, kwargs, output):
        output.logits[..., b] = 10 + (5e-4 if kwargs.get("past_key_values") is not None else 0)
        output.logits[..., a] = 10 + 2e-4

    model.register_forward_hook(lean, with_kwargs=True)
    scored = letter_scoring.score(model, tokenizer, ITEMS, max_batch_tokens=1, progress=False)
    assert scored.report["prefix_tokens"] > 100
    assert {outcome.predicted for outcome in scored.outcomes} == {"A"}
    assert scored.report["rescored"] == scored.report["flips"] == 14
