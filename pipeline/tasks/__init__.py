"""Tasks: question files, and the generator of the default task on real text."""
