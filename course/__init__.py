"""Assignments with checks and a grader, numbers to observe, and the theory of top-p distillation."""
