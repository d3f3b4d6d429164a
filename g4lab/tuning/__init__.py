"""What can be said about a kernel before it runs: compile facts and, later, tile and config tables."""

from g4lab.tuning.facts import CompileFacts, compile_facts, compile_many

__all__ = ["CompileFacts", "compile_facts", "compile_many"]
