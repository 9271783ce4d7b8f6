"""Pure metric functions (numpy only, nothing of ours): training and evaluation share them."""
