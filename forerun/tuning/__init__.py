"""Tuning: kernels measured against the limits of the machine, and searches among their schedules."""
