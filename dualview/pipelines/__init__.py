"""How each verb spreads over a cluster: the only room that imports ray or deepspeed."""
