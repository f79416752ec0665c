"""Probes asked, answers recorded, numbers reported."""
