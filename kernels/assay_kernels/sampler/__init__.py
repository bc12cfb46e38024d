"""Tokens drawn from logits: temperature, top-k, top-p, min-p and a seed of each row."""
