"""Dead letters: their form, what is open of them, and the topics that keep them."""
