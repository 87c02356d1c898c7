"""Ways to hold a picture in place while another is painted."""
