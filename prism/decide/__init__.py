"""Choosing a plan: what each is expected to cost, what is believed of the link, and the policy over both."""
