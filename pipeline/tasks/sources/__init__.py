"""The texts the default task is made of, read from installed pip packages, one file a source."""
