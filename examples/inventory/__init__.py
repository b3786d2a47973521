"""A small shop with a stock, carts and customers at three sites, which is cut off and loses nothing."""
