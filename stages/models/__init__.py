"""The networks of the conversion chain, inference only, in the order sound passes them."""
