"""Machines that run these may be busy: how long an example takes is no finding, unless a test says so."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "busy", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy")
