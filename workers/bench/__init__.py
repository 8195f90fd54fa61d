"""``errata bench`` measures the editor on CounterFact and zsRE."""
