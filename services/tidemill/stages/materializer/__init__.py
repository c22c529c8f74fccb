"""Keeps the views of other entities, and over outcomes."""
