"""The search agent as pure Python: words, parser, state machine, rewards, the evidence rule."""
