"""What a policy is worth, from logged episodes alone (offline policy evaluation)."""
