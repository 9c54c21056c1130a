"""Admission of prompts: validation, isolation, repeated ids, and the responses to POST /prompt."""
