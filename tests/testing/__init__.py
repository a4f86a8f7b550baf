"""The testing aids, used as a user's tests use them."""
