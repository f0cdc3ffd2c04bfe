"""Energy and CO2e of a notebook by codecarbon, where it is installed (extra `energy`); offline.

codecarbon measures the GPU through NVML and the processor through RAPL where the machine shows them, and
estimates them from the processor's rated power where it does not: on a laptop or a virtual machine the figure
is an estimate. CO2e needs the country whose grid the machine draws from: MEDKIT_COUNTRY, ISO 3166-1 alpha-3.
"""

import importlib.util
import logging
import os
import re

from medkit import MedkitError

INTERVAL = 15  # seconds between two readings of the power
SOME_COUNTRY = "USA"  # codecarbon wants one to begin; without MEDKIT_COUNTRY its CO2e is left out


class EnergyError(MedkitError):
    """A country that codecarbon does not know."""


def country() -> str:
    """MEDKIT_COUNTRY, "" where it is not set; EnergyError unless it is three letters."""
    code = os.environ.get("MEDKIT_COUNTRY", "").upper()
    if code and not re.fullmatch("[A-Z]{3}", code):
        raise EnergyError(f"MEDKIT_COUNTRY={code} is no country; give three letters (ISO 3166), e.g. FRA")
    return code


class Meter:
    """The energy of this process from construction to `stop`; nothing without codecarbon."""

    def __init__(self):
        self._country, self._tracker = country(), None
        if importlib.util.find_spec("codecarbon") is None:
            return
        from codecarbon import OfflineEmissionsTracker

        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        self._tracker = OfflineEmissionsTracker(
            country_iso_code=self._country or SOME_COUNTRY,
            measure_power_secs=INTERVAL,
            tracking_mode="process",
            save_to_file=False,
            log_level="error",
            allow_multiple_runs=True,
        )
        self._tracker.start()

    def stop(self) -> dict[str, float]:
        """{"energy_kwh": ..., "co2e_kg": ...}, the latter if the country is known; {} if not measured."""
        tracker, self._tracker = self._tracker, None
        if tracker is None:
            return {}
        tracker.stop()
        used = getattr(tracker, "final_emissions_data", None)
        if used is None:
            return {}
        found = {"energy_kwh": float(f"{used.energy_consumed:.4g}")}
        return found | ({"co2e_kg": float(f"{used.emissions:.4g}")} if self._country else {})
