"""Tests of gateway/workflows."""
