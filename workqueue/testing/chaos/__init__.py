"""Faults of every kind against a real work queue, and an account of what became of every task.

plan        the schedule of faults, from a seed
load        the tasks, and what is no task
run         the broker, the ledger, the workers and the producer, and the tasks' way through them
faults      what happens to them
command     the command line
"""
