"""The runtime of the work queue: it makes the words of the contract true.

Imports point one way, from right to left (the import contract in pyproject.toml holds it):

    errors <- settings contract <- codec ledger delivery <- tasks amqp <- worker producer <- scripts
"""
