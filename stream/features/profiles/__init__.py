"""Entity profiles: windows and delayed labels of users, merchants, cards, devices and addresses."""
