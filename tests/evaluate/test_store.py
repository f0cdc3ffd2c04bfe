"""The one store that evaluations go on from: whole lines only, and no model's results for another's."""

import json
from dataclasses import dataclass

import pytest

from medkit import MedkitError
from medkit.evaluate.store import Store


@dataclass(frozen=True)
class Pair:
    text: str
    numbers: tuple[float, ...]


ONE, TWO = Pair("a\u2028b\n", (1.5, -2.0)), Pair("", ())


def test_what_was_added_is_read_again(tmp_path):
    store = Store(tmp_path / "new" / "s.jsonl", Pair, "model")
    assert store.read() == {}
    store.add({store.key("x"): ONE})
    store.add({})
    store.add({store.key("y"): TWO})
    assert Store(store.path, Pair, "model").read() == {store.key("x"): ONE, store.key("y"): TWO}


def test_every_cut_loses_the_last_line_and_no_other(tmp_path):
    store = Store(tmp_path / "s.jsonl", Pair, "model")
    store.add({"1": ONE, "2": TWO})
    whole = store.path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole)):
        store.path.write_bytes(whole[:cut])
        assert store.read() == ({"1": ONE} if cut >= first else {})
        store.add({"3": TWO})
        assert store.read().keys() == ({"1", "3"} if cut >= first else {"3"})


@pytest.mark.parametrize("junk", ["[]", "7", "{}", "not json", '{"key": "1"}', '{"key": "1", "other": 2}'])
def test_a_line_that_is_no_result_is_dropped(tmp_path, junk):
    store = Store(tmp_path / "s.jsonl", Pair, "model")
    store.path.write_text(f"{junk}\n")
    store.add({"2": TWO})
    assert store.read() == {"2": TWO}


def test_the_key_holds_the_owner_and_every_part():
    keys = {Store("p", Pair, owner).key(*parts) for owner in ("a", "b") for parts in ((1,), (1, 2), ("1",))}
    assert len(keys) == 6
    assert Store("p", Pair, "a").key({"x": 1, "y": 2}) == Store("q", Pair, "a").key({"y": 2, "x": 1})


def test_a_store_needs_an_owner_and_none_keeps_nothing(tmp_path):
    with pytest.raises(MedkitError, match="a store without a key could read one model's answers"):
        Store(tmp_path / "s.jsonl", Pair, "")
    nowhere = Store(None, Pair, "")
    nowhere.add({nowhere.key("x"): ONE})
    assert nowhere.read() == {} and json.dumps(nowhere.key("x"))
