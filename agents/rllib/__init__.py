"""Training on many machines with Ray RLlib; needs the extra ``ray`` (see docs/scaling.md)."""
