"""The runtime of the work queue: it makes the words of the contract true.

Imports point one way, from right to left (the import contract in pyproject.toml holds it):

    errors <- settings contract <- codec policy ledger delivery <- wire submit <- handler <- worker producer <- scripts
"""
