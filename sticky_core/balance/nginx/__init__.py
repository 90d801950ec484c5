"""What nginx means by its words for balance, where HAProxy means something else: for those who come from there."""
