"""Faults of every kind against a real work queue, and an account of what became of every task.

settings    what a run is asked for
plan        the schedule of faults, from a seed
load        the tasks, and what is no task
payloads    which operation each payload of a user is for
house       the broker, the ledger, the proxies before them, and where processes start
workers     three, each of which is there all the time
producing   a producer for each operation, and what it was given
faults      what happens to all of these
book        what the run knows of what it did
run         all of it, from the first task to the account
command     the command line
"""
