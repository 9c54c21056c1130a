"""The life of a job on a backend: events, completion, failures, cancellation, reconciliation."""
