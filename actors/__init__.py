"""Glue between the pipeline and Ray, vLLM, FAISS and DeepSpeed: one file a pool."""
