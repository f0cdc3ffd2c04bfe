"""Energy and CO2e of a notebook, measured offline by codecarbon if it is installed (extra `energy`).

codecarbon measures the GPU through NVML and the processor through RAPL. Without RAPL, as on many laptops and
virtual machines, it estimates from the processor's rated power. CO2e requires the country of the power grid:
MEDKIT_COUNTRY, ISO 3166-1 alpha-3.
"""

import importlib.util
import logging
import os
import re

from medkit import MedkitError

INTERVAL = 15  # seconds between two power readings
PLACEHOLDER_COUNTRY = "USA"  # codecarbon requires one; without MEDKIT_COUNTRY its CO2e is discarded


def country() -> str:
    """MEDKIT_COUNTRY, or "" if it is not set; MedkitError unless it has three letters."""
    code = os.environ.get("MEDKIT_COUNTRY", "").upper()
    if code and not re.fullmatch("[A-Z]{3}", code):
        raise MedkitError(f"MEDKIT_COUNTRY={code} is not a country code; use three letters, e.g. FRA")
    return code


class Meter:
    """Measures the energy of this process until `stop`; does nothing without codecarbon."""

    def __init__(self):
        self._country, self._tracker = country(), None
        if importlib.util.find_spec("codecarbon") is None:
            return
        from codecarbon import OfflineEmissionsTracker

        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        self._tracker = OfflineEmissionsTracker(
            country_iso_code=self._country or PLACEHOLDER_COUNTRY,
            measure_power_secs=INTERVAL,
            tracking_mode="process",
            save_to_file=False,
            log_level="error",
            allow_multiple_runs=True,
        )
        self._tracker.start()

    def stop(self) -> dict[str, float]:
        """{"energy_kwh": ..., "co2e_kg": ...}; no "co2e_kg" without a country, {} without codecarbon."""
        tracker, self._tracker = self._tracker, None
        if tracker is None:
            return {}
        tracker.stop()
        data = getattr(tracker, "final_emissions_data", None)
        if data is None:
            return {}
        numbers = {"energy_kwh": data.energy_consumed}
        if self._country:
            numbers["co2e_kg"] = data.emissions
        return {name: float(f"{value:.4g}") for name, value in numbers.items()}
