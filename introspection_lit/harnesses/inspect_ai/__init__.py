"""For Inspect AI, which loads this package by its entry point: the task and the model provider ``introspection``."""

from introspection_lit.harnesses.inspect_ai.provider import IntrospectionAPI, introspection_model
from introspection_lit.harnesses.inspect_ai.task import introspection

__all__ = ["IntrospectionAPI", "introspection", "introspection_model"]
