"""Public data sets as typed edge lists. Each adapter says where its set is found and under which licence."""
