"""A job on its backend: events, completion, failures, cancellation, reconciliation."""
