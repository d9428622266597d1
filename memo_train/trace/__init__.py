"""Measures one block of a model, so that a step can be planned before it runs."""
