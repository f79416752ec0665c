"""Causal language models with their tokenizers."""
