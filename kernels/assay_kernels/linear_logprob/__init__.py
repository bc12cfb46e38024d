"""Log-probs, log-sum-exp and entropies straight from hidden states and the head's weight."""
