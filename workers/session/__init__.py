"""Write one batch of corrections into the weights."""
