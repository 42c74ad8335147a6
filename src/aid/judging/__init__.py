"""The judge: a network taught on real pictures that names what it sees in drawn ones, and how it is read.

`evaluate` teaches it and scores galleries by it; `train` and `search` ask it while they work.
"""
