"""The dashboard: a Streamlit page over the same scenario that the command line reads."""
