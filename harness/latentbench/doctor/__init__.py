"""Proof, in less than a minute, that this installation measures right: metrics on known truths, and the environment.

check        what a check is, and how all of them are run
truths       SAEs and planted dictionaries whose numbers are known without measuring
massive      a planted massive activation
intervals    coverage of intervals and size of tests, by simulation
environment  versions, device, disk, and whether the hub answers"""
