"""`make scorecard`: what independent judges say of a host before Quench and after."""
