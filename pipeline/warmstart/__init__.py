"""The small default policy: tokenizer, model, scripted episodes and supervised warm start."""
