"""What a researcher sees and changes: TRL's own configuration of a stage."""

import json
from dataclasses import replace

import pytest
import tiny_run

from medkit import MedkitError
from medkit import train as training
from medkit.train import config, fitting, models


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    models.unsloth()
    return tiny_run.write_base(tmp_path_factory.mktemp("base"))


def made(**changes):
    made = training.sft_config(tiny_run.STAGE, max_length=tiny_run.MAX_LENGTH)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def for_fit(tmp_path, given):
    return config.for_fit(given, tiny_run.STAGE, max_length=tiny_run.MAX_LENGTH, folder=tmp_path / "stage1")


def test_it_is_trls_own_and_says_what_the_recipe_says():
    from trl import SFTConfig

    ours = made()
    assert isinstance(ours, SFTConfig)
    assert (ours.learning_rate, ours.per_device_train_batch_size, ours.max_length) == (0.01, 2, 1024)
    assert (ours.gradient_accumulation_steps, ours.warmup_steps, ours.eval_steps) == (2, 2, 4)


def test_the_recipes_own_is_taken_where_none_is_given(tmp_path):
    assert config.non_defaults(for_fit(tmp_path, None)) == config.non_defaults(for_fit(tmp_path, made()))


def test_what_was_used_is_what_differs_from_trls_defaults_in_jsons_types(tmp_path):
    used = config.non_defaults(for_fit(tmp_path, made(max_grad_norm=0.5)))
    assert json.loads(json.dumps(used)) == used
    assert used["learning_rate"] == 0.01 and used["max_grad_norm"] == 0.5
    assert "lr_scheduler_type" not in used  # linear is TRL's own
    assert str(tmp_path) not in json.dumps(used)


def test_the_callers_configuration_is_left_as_it_is(tmp_path):
    ours = made()
    before = ours.to_dict()
    assert for_fit(tmp_path, ours).output_dir == str(tmp_path / "stage1" / "checkpoints" / ".writing")
    assert ours.to_dict() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"output_dir": "elsewhere"},
            "output_dir was changed from .* to 'elsewhere': checkpoints are in the",
        ),
        ({"train_sampling_strategy": "random"}, "train_sampling_strategy .*determines the order of rows"),
        ({"num_train_epochs": 3}, "num_train_epochs was changed from 1 to 3"),
        ({"packing": True}, "packing was changed from False to True: set packing"),
        ({"packing_strategy": "wrapped"}, "packing_strategy"),
        ({"report_to": ["wandb"]}, "report_to .*set report_to"),
        ({"max_length": 64}, "max_length was changed from 1024 to 64: set model.max_length"),
        ({"save_strategy": "no"}, "save_strategy"),
        ({"push_to_hub": True}, "push_to_hub"),
        ({"eos_token": "<|x|>"}, "eos_token was changed"),
        ({"seed": 7}, "seed was changed from 0 to 7"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end"),
        ({"completion_only_loss": True}, "completion_only_loss .*determines the rows"),
    ],
)
def test_a_changed_field_that_fit_depends_on_is_refused_by_its_name(tmp_path, changes, named):
    with pytest.raises(MedkitError, match=rf"config\.{named}") as refused:
        for_fit(tmp_path, made(**changes))
    assert "\n" not in str(refused.value)


def test_every_field_that_cannot_be_changed_is_one_of_trls():
    fields = vars(made())
    assert not [name for name in config.FIXED if name not in fields]


def fit(base, folder, given, resume=False):
    rows = tiny_run.model_and_rows(base)
    return fitting.fit(
        *rows,
        replace(tiny_run.STAGE, max_steps=2),
        folder=folder,
        max_length=tiny_run.MAX_LENGTH,
        config=given,
        resume=resume,
        progress=False,
    )


def test_a_changed_field_is_what_is_trained_with_and_another_is_refused_on_resume(base, tmp_path):
    """Two steps of the 10 that 40 rows would give, with all of the learning rate from the first step on."""
    stage = replace(tiny_run.STAGE, max_steps=2)
    ours = training.sft_config(stage, max_length=tiny_run.MAX_LENGTH)
    ours.warmup_steps, ours.learning_rate, ours.adam_beta2 = 0, 0.004, 0.95
    done = fit(base, tmp_path, ours)
    log = [line.split(",") for line in (tmp_path / "loss.csv").read_text().splitlines()]
    rate = log[0].index("learning_rate")
    assert [float(line[rate]) for line in log[2:]] == [0.004, 0.002]
    assert done.config["adam_beta2"] == 0.95 and done.config["learning_rate"] == 0.004
    ours.learning_rate = 0.003
    with pytest.raises(MedkitError, match=r"trainer\.learning_rate=0\.004, this run has 0\.003"):
        fit(base, tmp_path, ours, resume=True)
    ours.learning_rate, ours.eval_steps = 0.004, 1  # not what training depends on
    assert fit(base, tmp_path, ours, resume=True).resumed_from == 2
