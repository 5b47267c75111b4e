"""HTTP itself: requests, answers, routes, limits of the socket. Knows no job and no resource."""
