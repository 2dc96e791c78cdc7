"""Gleaner: a distributed reinforcement-learning pipeline that trains LLM search agents."""
