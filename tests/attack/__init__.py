"""The attack list: what hostile and broken clients send, and the check that each gets a correct refusal."""
