"""The policy loss of packed sequences, with its metrics, in one launch forward and one backward."""
