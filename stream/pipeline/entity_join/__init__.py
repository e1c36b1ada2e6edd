"""The entity join: transactions meet the profiles of their merchants, cards, devices and addresses."""
