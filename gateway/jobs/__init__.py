"""The life of a job, from POST /prompt to its history entry."""
