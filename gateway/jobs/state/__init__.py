"""The jobs' state: the ledger and its records, the history, queues and indexes. Only the ledger changes a job."""
