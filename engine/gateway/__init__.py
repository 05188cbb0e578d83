"""The gateway before expert models: prompts by topic, after Expert Router (arXiv 2404.15153).

`words` takes a text apart, `training` finds the clusters of many (scikit-learn works here alone),
`gateway` sends a prompt to the nearest; `file` keeps a gateway, `latency` times it. What was
trained elsewhere routes here with numpy and nothing else.
"""
