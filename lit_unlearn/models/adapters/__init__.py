"""Adapters beside the weights of a frozen model, and weights that are frozen in four bits."""
