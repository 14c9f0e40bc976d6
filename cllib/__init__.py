"""Continual learning, reproduced."""
