"""Every hot path of kmscore beside the raw primitive it wraps and the best way to do the same without Cython.

`python -m bench.micro` runs the tests of this directory and writes `build/bench/micro.json`. Times are CPU times of the
thread, so that neighbours on the machine cost less; what is compared takes turns, several times over.
"""
