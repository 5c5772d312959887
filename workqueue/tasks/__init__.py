"""What becomes of one message: the way from a delivery to its ack.

policy      what follows from an attempt: pure decisions
processor   acts on them, in an order that loses nothing
scope       what holds a running handler: time limit, renewal of the claim, cancellation
context     one attempt, as its handler sees it
threads     blocking handlers, in a thread of their own
"""
