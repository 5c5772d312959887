"""What becomes of one message: the way from a delivery to its ack.

policy      what follows from an attempt: pure decisions
processor   acts on them, in an order that loses nothing
attempt     runs one handler to its outcome, whatever it does
scope       what holds a running handler: time limit, renewal of the claim, cancellation
context     one attempt, as its handler sees it
threads     blocking handlers, in a thread of their own
watchdog    a thread that looks at the event loop from outside
stack       where code is, and where it failed, in a few lines
"""
