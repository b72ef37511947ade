"""Adapters of PEFT: read for a converted model, and written for PEFT."""
