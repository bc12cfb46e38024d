"""How rewards become a gradient: pure functions on tensors, each with its source.

    advantage   rewards of a batch -> one advantage for each sample
    loss        log-probs and advantages of packed sequences -> the loss and what to watch
    kl          estimates of the divergence from the reference model
    correction  weights for the difference between sampler and trainer

Nothing here knows a model, a process group or an optimiser, and nothing is remembered between
calls.
"""
