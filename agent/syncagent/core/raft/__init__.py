"""Agreement among the agents, as a pure machine; `machine` says how it is driven, 0007 of the decisions why."""
