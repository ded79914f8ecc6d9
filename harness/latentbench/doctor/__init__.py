"""Proof, in less than a minute, that this installation measures right: metrics on known truths, and the surroundings.

check         what a check is, and how all of them are run
truths        metrics of SAEs whose numbers are known without measuring, on the pocket model
dictionary    a planted dictionary: is it recognised, and can training find it
intervals     coverage of intervals and size of tests, by simulation
surroundings  versions, device, disk, and whether the hub answers
"""
