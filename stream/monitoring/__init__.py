"""Monitoring: metrics, drift, logs, traces and the watchdog."""
