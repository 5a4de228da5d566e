"""Metrics, logs, traces and statistics for operators."""
