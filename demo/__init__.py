"""The demo: one file dropped, every stage shown, three questions asked."""
