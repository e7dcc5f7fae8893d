"""What the statistics of a run say is wrong with it, in words that name the setting to change.

`checkup.diagnose` looks at the steps so far as plain numbers, so it reads a running trainer and a saved run alike. Each
diagnosis says what was seen, and what to do. The rules, each with its limits:

- `of_responses`: what was given to `step`, where it came from, how it ends
- `of_training`: the policy, the scores, the values
"""
