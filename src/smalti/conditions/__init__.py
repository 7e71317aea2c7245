"""Conditions of generation: one file per kind, all with the signature of `base.Condition`."""
