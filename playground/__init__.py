"""The page that shows the network at work, and its gateway to the service; web/ holds the sources of static/."""
