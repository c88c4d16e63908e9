"""Where the triggers of `infra.driver.airflow_triggers` stood before. Airflow stores a deferred trigger by its import
path, so a `watch` that was deferred before an upgrade is looked for here; nothing else may import this."""

from __future__ import annotations

from infra.driver.airflow_triggers import DriverWatch, MayStart

__all__ = ["DriverWatch", "MayStart"]
