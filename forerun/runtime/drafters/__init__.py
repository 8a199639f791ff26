"""Drafters: what proposes trees."""
