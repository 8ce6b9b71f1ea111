"""Radio: station counters -> day-ahead forecast -> which carriers sleep in which hour, and what that would have cost.

Works alone (`pip install 'ninthsky[radio]'`, `n9 radio plan COUNTERS.csv`): only `radio.transformer` imports torch.
"""
