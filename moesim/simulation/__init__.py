"""The simulation proper; simpy lives in this room only."""
