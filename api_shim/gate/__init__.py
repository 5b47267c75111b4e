"""What every request passes before its route: who asks, how often, whether there is room."""
