"""The dashboard: `streamlit run app.py`."""

from moesim.dashboard.page import main

main()
