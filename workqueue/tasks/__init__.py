"""What becomes of one message: the way from a delivery to its ack.

policy      what follows from an attempt: pure decisions
processor   claims the task, and acts on the decisions
execution   has the task run, and its end recorded
settling    the ways in which a message is settled, each in an order that loses nothing
events      what became of it, as a value
attempt     runs one handler to its outcome, whatever it does
scope       what holds a running handler: time limit, renewal of the claim, cancellation
received    a task in hand, and what all tasks of a worker share
context     one attempt, as its handler sees it
threads     blocking handlers, in a thread of their own
watchdog    a thread that looks at the event loop from outside
stack       where code is, and where it failed, in a few lines
"""
