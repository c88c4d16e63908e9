"""The old import path of `infra.driver.airflow_triggers`. Airflow stores a deferred trigger by its import path, so a
`watch` that was deferred before an upgrade is looked for here; nothing else may import this module."""

from __future__ import annotations

from infra.driver.airflow_triggers import DriverWatch, MayStart

__all__ = ["DriverWatch", "MayStart"]
