"""What a stage minimises: the players it trains and their losses. A stage row names one."""
