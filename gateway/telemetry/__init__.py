"""Metrics, structured logs, the audit log, and supervised tasks."""
