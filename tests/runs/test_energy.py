"""Energy by codecarbon: a stand-in for its tracker here, the library itself where it is installed."""

import importlib.machinery
import sys
import types

import pytest

from medkit import MedkitError
from medkit.runs import energy, run_json


@pytest.fixture
def codecarbon(monkeypatch):
    """A codecarbon that has measured 0.25 kWh; `asked` holds what the tracker was made with."""
    module = types.ModuleType("codecarbon")
    module.__spec__ = importlib.machinery.ModuleSpec("codecarbon", None)
    module.asked = {}

    class OfflineEmissionsTracker:
        def __init__(self, **options):
            module.asked = options

        def start(self):
            self.final_emissions_data = None

        def stop(self):
            measured = types.SimpleNamespace(energy_consumed=0.250012, emissions=0.0140007)
            self.final_emissions_data = measured

    module.OfflineEmissionsTracker = OfflineEmissionsTracker
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    monkeypatch.delenv("MEDKIT_COUNTRY", raising=False)
    return module


def test_energy_and_with_a_country_co2e(codecarbon, monkeypatch):
    assert energy.Meter().stop() == {"energy_kwh": 0.25}  # no country: whose grid is not known
    monkeypatch.setenv("MEDKIT_COUNTRY", "fra")
    assert energy.Meter().stop() == {"energy_kwh": 0.25, "co2e_kg": 0.014}
    assert codecarbon.asked["country_iso_code"] == "FRA"
    assert codecarbon.asked["save_to_file"] is False


def test_a_meter_stops_once(codecarbon):
    meter = energy.Meter()
    assert meter.stop() and meter.stop() == {}


def test_a_tracker_that_could_not_measure_gives_nothing(codecarbon):
    codecarbon.OfflineEmissionsTracker.stop = lambda self: None
    assert energy.Meter().stop() == {}


def test_without_codecarbon_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(energy.importlib.util, "find_spec", lambda name: None)
    assert energy.Meter().stop() == {}


@pytest.mark.parametrize("given", ["France", "F1A", "FR"])
def test_a_country_that_is_none_is_refused_before_a_run_begins(monkeypatch, given):
    monkeypatch.setenv("MEDKIT_COUNTRY", given)
    with pytest.raises(MedkitError, match="three letters"):
        run_json.describe("cpu")


def test_a_notebook_writes_what_it_used(codecarbon, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    run = run_json.begin("try", "01_stage1", "cpu")
    run.finish()
    assert run_json.read(tmp_path / "try")["notebooks"]["01_stage1"]["energy_kwh"] == 0.25


def test_the_library_itself():
    pytest.importorskip("codecarbon")
    meter = energy.Meter()
    assert sum(n * n for n in range(10**6)) > 0
    assert 0 <= meter.stop()["energy_kwh"] < 1
