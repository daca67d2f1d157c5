"""Choose plans: their expected costs, an estimate of the link's rate, and the policy over both."""
