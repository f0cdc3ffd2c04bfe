"""Checkpoints: which is whole, whose it is, and what a reader is told of one that is neither."""

import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medkit import MedkitError
from medkit.train import checkpoints

IDENTITY = {
    "seed": 0,
    "learning_rate": 3e-4,
    "dmt.replay_share": 1 / 3,
    "lora.target_modules": ("q_proj", "v_proj"),
}
IDENTITY |= {"training rows": "5f1c", "base weights": "08aa"}
FILES = {
    "adapter_model.safetensors": b"weights" * 100,
    "adapter_config.json": b"{}",
    "optimizer.pt": b"moments" * 100,
    "scheduler.pt": b"rate" * 10,
    "rng_state.pth": b"draws" * 10,
    "trainer_state.json": json.dumps({"global_step": 6, "max_steps": 10}).encode(),
    "meter.json": b"{}",
    "loss.csv": b"step\n",
}


def write(folder, step, identity=IDENTITY, files=FILES):
    """A whole checkpoint, the way the trainer leaves one."""
    aside = folder / ".writing" / f"checkpoint-{step}"
    aside.mkdir(parents=True)
    for name, content in files.items():
        (aside / name).write_bytes(content + str(step).encode())
    checkpoints.publish(aside, folder / aside.name, identity)
    return folder / aside.name


def newest(folder, identity=IDENTITY):
    """(its name or None, the lines said)."""
    said = []
    found = checkpoints.find_resumable(folder, identity, said.append)
    return found and found.name, said


def test_nothing_is_there(tmp_path):
    assert newest(tmp_path) == (None, [])
    assert newest(tmp_path / "nowhere") == (None, [])
    assert checkpoints.newest_complete(tmp_path) is None


def test_the_newest_goes_by_number_not_by_name(tmp_path):
    for step in (3, 20, 100, 9):
        write(tmp_path, step)
    assert newest(tmp_path) == ("checkpoint-100", [])
    assert checkpoints.newest_complete(tmp_path).name == "checkpoint-100"
    checkpoints.prune(tmp_path, 100, 2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-100", "checkpoint-20"]


def test_a_damaged_later_one_is_not_kept_in_the_place_of_a_whole_one(tmp_path):
    """9 is damaged, training went on from 6 and has just written 7: 6 and 7 are the two newest whole ones."""
    for step in (3, 6, 7, 9):
        write(tmp_path, step)
    (tmp_path / "checkpoint-9" / "scheduler.pt").unlink()
    assert checkpoints.newest_complete(tmp_path).name == "checkpoint-7"
    checkpoints.prune(tmp_path, 7, 2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-7"]


def test_what_is_still_being_written_is_not_seen(tmp_path):
    (tmp_path / ".writing" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "checkpoint-notes").mkdir()  # not ours
    assert newest(tmp_path) == (None, [])


@pytest.mark.parametrize("part", [*FILES])
def test_a_missing_part_is_named(tmp_path, part):
    """With an older whole one it is passed over; without one, training does not begin anew in silence."""
    write(tmp_path, 6)
    (write(tmp_path, 9) / part).unlink()
    name, said = newest(tmp_path)
    assert name == "checkpoint-6"
    (line,) = said
    assert line.startswith("checkpoint-9 is skipped: ")
    assert part.removesuffix(".pth") in line and "is missing" in line
    shutil.rmtree(tmp_path / "checkpoint-6")
    with pytest.raises(
        MedkitError, match=rf"no checkpoint is complete.*{part.removesuffix('.pth')}.* is missing"
    ):
        newest(tmp_path)


def test_a_part_that_was_never_saved_is_missed_too(tmp_path):
    """An optimizer that was not saved leaves a marker that says nothing of it."""
    write(tmp_path, 6, files={name: text for name, text in FILES.items() if name != "optimizer.pt"})
    with pytest.raises(MedkitError, match=r"optimizer\.pt is missing"):
        newest(tmp_path)


@pytest.mark.parametrize(
    ("content", "flaw"),
    [
        (b"", "has changed since it was written"),
        (b"weights", "has changed since it was written"),
        (None, "is missing"),
    ],
)
def test_damaged_weights(tmp_path, content, flaw):
    write(tmp_path, 6)
    weights = write(tmp_path, 9) / "adapter_model.safetensors"
    weights.unlink()
    if content is not None:
        weights.write_bytes(content)
    name, said = newest(tmp_path)
    assert name == "checkpoint-6"
    assert said == [f"checkpoint-9 is skipped: adapter_model.safetensors {flaw}"]


@pytest.mark.parametrize(
    "marker", [None, "", "{", "[]", '{"identity": {}}', '{"sha256": [], "identity": null}']
)
def test_a_marker_that_cannot_be_read(tmp_path, marker):
    write(tmp_path, 6)
    path = write(tmp_path, 9) / checkpoints.MARKER
    path.unlink() if marker is None else path.write_text(marker)
    name, (line,) = newest(tmp_path)
    assert name == "checkpoint-6"
    assert "was not finished" in line


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_noticed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("c")
    path = write(folder, 9) / data.draw(st.sampled_from(sorted(FILES)))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(MedkitError, match=f"{path.name} has changed since it was written"):
        newest(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 1),
        ("dmt.replay_share", 0.5),
        ("learning_rate", 1e-4),
        ("training rows", "77ab"),
        ("base weights", "1111"),
        ("lora.target_modules", ("q_proj",)),
    ],
)
def test_another_run_is_refused_by_the_field(tmp_path, field, value):
    write(tmp_path, 6)
    with pytest.raises(MedkitError, match=f"checkpoint-6 was written with {field}=.*this run has") as refusal:
        newest(tmp_path, IDENTITY | {field: value})
    assert "\n" not in str(refusal.value)
    with pytest.raises(MedkitError, match=field):  # a field that only one of the two knows
        newest(tmp_path, {name: own for name, own in IDENTITY.items() if name != field})


def test_a_run_of_another_identity_is_refused_though_an_older_one_would_fit(tmp_path):
    write(tmp_path, 6)
    write(tmp_path, 9, IDENTITY | {"seed": 5})
    with pytest.raises(MedkitError, match="checkpoint-9 was written with seed=5, this run has 0"):
        newest(tmp_path)


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=8)
        | st.tuples(st.text(max_size=3)),
        max_size=6,
    )
)
@settings(max_examples=40, deadline=None)
def test_a_run_is_always_its_own(tmp_path_factory, identity):
    folder = tmp_path_factory.mktemp("c")
    write(folder, 6, identity)
    assert newest(folder, identity) == ("checkpoint-6", [])


def test_a_checkpoint_takes_the_place_of_a_damaged_one_of_its_step(tmp_path):
    write(tmp_path, 6)
    (write(tmp_path, 9) / "optimizer.pt").unlink()
    write(tmp_path, 9)
    assert newest(tmp_path) == ("checkpoint-9", [])


def test_finished_says_whether_steps_are_left(tmp_path):
    path = tmp_path / "checkpoint-6"
    path.mkdir()
    for steps, done in ((6, True), (10, False)):
        (path / "trainer_state.json").write_text(json.dumps({"global_step": 6, "max_steps": steps}))
        assert checkpoints.finished(path) is done


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "adapter"
    with pytest.raises(OSError, match="full"), checkpoints.atomic_folder(folder) as aside:
        (aside / "half").write_text("")
        raise OSError("full")
    assert os.listdir(tmp_path) == []
    with checkpoints.atomic_folder(folder) as aside:
        (aside / "first").write_text("1")
        assert not folder.exists()
    with checkpoints.atomic_folder(folder) as aside:  # in place of the first
        (aside / "second").write_text("2")
        assert os.listdir(folder) == ["first"]
    assert os.listdir(folder) == ["second"]
    assert os.listdir(tmp_path) == ["adapter"]


def test_of_two_processes_that_write_the_same_folder_the_first_one_stays(tmp_path):
    """The first may be in use by then: a dataset keeps temporary files in its folder."""
    folder = tmp_path / "prepared"
    with checkpoints.atomic_folder(folder, keep="rows") as late:
        (late / "rows").write_text("late")
        with checkpoints.atomic_folder(folder, keep="rows") as early:
            (early / "rows").write_text("early")
        (folder / "cache-of-a-reader").touch()
    assert (folder / "rows").read_text() == "early" and (folder / "cache-of-a-reader").exists()
    assert list(tmp_path.iterdir()) == [folder]
    (folder / "rows").unlink()  # no longer complete
    with checkpoints.atomic_folder(folder, keep="rows") as again:
        (again / "rows").write_text("again")
    assert (folder / "rows").read_text() == "again"
