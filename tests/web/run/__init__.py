"""Tests of gateway/web/run."""
