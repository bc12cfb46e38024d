"""Verified reinforcement learning of language models: the job file and the algorithms.

Nothing is imported here: who reads a job file needs no torch.
"""
