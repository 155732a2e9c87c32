"""How fast networks are on this machine, beside timm's form of them and the machine's limits."""
