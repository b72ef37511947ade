"""Figures: learning curves and attention maps."""
