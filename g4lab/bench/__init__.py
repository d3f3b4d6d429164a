"""Measuring: timing with its noise, providers side by side, statistics that every comparison shares."""
