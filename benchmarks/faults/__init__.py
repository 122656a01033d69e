"""A campaign of damaged files, killed processes and broken surroundings, and what vpjax makes of them."""
