"""Logits hooks: what changes the scores of a token, by the tokens before it."""
